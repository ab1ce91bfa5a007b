"""What ingest decides and writes, without servers."""

import io
import json
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from components.errors import BadInput
from components.ingest.config import DataConfig
from components.ingest.images import Accepted, Rejected, judge
from components.ingest.ingest import dataset_digest
from components.ingest.shards import ShardWriter
from components.ingest.sources import open_source, require_consent
from components.ingest.synthetic import draw_face, encode_face, write_archive


def config(**changes: Any) -> DataConfig:
    values: dict[str, Any] = {"name": "faces", "source": "synthetic://?count=4", "image_px": 32}
    return DataConfig(**{**values, **changes})


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def test_an_rgb_image_of_the_target_size_keeps_its_bytes() -> None:
    for data, extension in ((encode_face(0, 1, 32), "jpg"), (encoded(draw_face(0, 1, 32)), "png")):
        verdict = judge(data, config())
        assert isinstance(verdict, Accepted)
        assert verdict.data == data
        assert verdict.rules == ("as_is",)
        assert verdict.extension == extension


def test_a_larger_image_is_cropped_to_its_centre_and_resized_once() -> None:
    wide = Image.new("RGB", (96, 64), (255, 0, 0))
    wide.paste((0, 0, 255), (16, 0, 80, 64))
    verdict = judge(encoded(wide), config())
    assert isinstance(verdict, Accepted)
    assert verdict.rules == ("resized",)
    assert verdict.source_px == (96, 64)
    pixels = np.asarray(Image.open(io.BytesIO(verdict.data)))
    assert pixels.shape == (32, 32, 3)
    assert (pixels == (0, 0, 255)).all()


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "LA", "CMYK", "1"])
def test_other_modes_become_rgb_by_a_named_rule(mode: str) -> None:
    image = draw_face(0, 2, 32)
    if mode == "LA":
        image = image.convert("L").convert("LA")
    data = encoded(image.convert(mode), "JPEG" if mode == "CMYK" else "PNG")
    verdict = judge(data, config())
    assert isinstance(verdict, Accepted)
    assert verdict.rules == ("converted",)
    assert verdict.extension == "png"
    assert np.asarray(Image.open(io.BytesIO(verdict.data))).shape == (32, 32, 3)


def test_transparent_pixels_become_white() -> None:
    image = Image.new("RGBA", (32, 32), (10, 20, 30, 0))
    verdict = judge(encoded(image), config())
    assert isinstance(verdict, Accepted)
    assert (np.asarray(Image.open(io.BytesIO(verdict.data))) == 255).all()


def test_an_image_that_says_it_lies_on_its_side_is_turned_upright() -> None:
    image = Image.new("RGB", (32, 32), (255, 255, 255))
    image.paste((0, 0, 0), (0, 0, 32, 8))
    exif = Image.Exif()
    exif[274] = 6
    verdict = judge(encoded(image, "PNG", exif=exif), config())
    assert isinstance(verdict, Accepted)
    assert verdict.rules == ("upright",)
    pixels = np.asarray(Image.open(io.BytesIO(verdict.data)))
    assert (pixels[:, -8:] == 0).all()
    assert (pixels[:, :24] == 255).all()


def animated() -> bytes:
    frames = [Image.new("RGB", (32, 32), (i, 0, 0)) for i in (0, 90, 200)]
    return encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])


def bomb() -> bytes:
    return encoded(Image.new("1", (9000, 9000)))


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"", "not_an_image"),
        (b"hello", "not_an_image"),
        (encode_face(0, 0, 64)[:-400], "truncated"),
        (encoded(draw_face(0, 0, 64))[:200], "truncated"),
        (encoded(Image.new("RGB", (31, 64))), "too_small"),
        (encoded(Image.new("I;16", (64, 64))), "sixteen_bit"),
        (animated(), "animated"),
        (bomb(), "too_many_pixels"),
        (b"\x89PNG\r\n\x1a\n" + b"\0" * 2048, "not_an_image"),
    ],
)
def test_what_cannot_be_used_is_rejected_with_a_code(data: bytes, code: str) -> None:
    verdict = judge(data, config())
    assert isinstance(verdict, Rejected)
    assert verdict.code == code, verdict.detail


def test_a_file_over_the_budget_is_not_even_opened() -> None:
    verdict = judge(b"x" * 2000, config(max_image_bytes=1500))
    assert isinstance(verdict, Rejected)
    assert verdict.code == "too_many_bytes"


@given(st.binary(max_size=300))
def test_no_bytes_make_the_judge_fail(data: bytes) -> None:
    assert isinstance(judge(data, config()), Accepted | Rejected)
    assert isinstance(judge(encode_face(0, 0, 32)[:100] + data, config()), Accepted | Rejected)


def test_the_digest_of_a_data_set_depends_on_its_images_only() -> None:
    assert dataset_digest(32, ["a", "b"]) == dataset_digest(32, ["b", "a"])
    assert dataset_digest(32, ["a", "b"]) != dataset_digest(32, ["a"])
    assert dataset_digest(32, ["a"]) != dataset_digest(64, ["a"])


def test_drawn_faces_are_a_function_of_seed_and_index_and_vary() -> None:
    assert encode_face(0, 3, 64) == encode_face(0, 3, 64)
    assert len({encode_face(seed, index, 64) for seed in range(2) for index in range(20)}) == 40


def test_the_archive_is_laid_out_like_kaggles_and_always_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a.zip", "b.zip"):
        write_archive(tmp_path / name, count=3, seed=0, image_px=32)
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()
    with zipfile.ZipFile(tmp_path / "a.zip") as archive:
        assert archive.namelist() == [f"celeba_hq_256/{index:05d}.jpg" for index in range(3)]


def make_source(kind: str, folder: Path) -> str:
    images = {f"deep/er/{index:05d}.jpg": encode_face(0, index, 32) for index in range(4)}
    clutter = {"readme.txt": b"hello", "__MACOSX/._00000.jpg": b"junk", "deep/._00001.jpg": b"junk"}
    if kind == "folder":
        for name, data in (images | clutter).items():
            path = folder / "tree" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        return str(folder / "tree")
    if kind == "zip":
        with zipfile.ZipFile(folder / "images.zip", "w") as archive:
            for name, data in (images | clutter).items():
                archive.writestr(name, data)
        return str(folder / "images.zip")
    with tarfile.open(folder / f"images.{kind}", "w:gz" if kind.endswith("gz") else "w") as tar:
        for name, data in (images | clutter).items():
            header = tarfile.TarInfo(name)
            header.size = len(data)
            tar.addfile(header, io.BytesIO(data))
    return str(folder / f"images.{kind}")


@pytest.mark.parametrize("kind", ["folder", "zip", "tar", "tar.gz"])
def test_every_kind_of_source_gives_the_same_images(tmp_path: Path, kind: str) -> None:
    source = open_source(config(source=make_source(kind, tmp_path)))
    found = {candidate.name.rsplit("/", 1)[-1]: candidate.data for candidate in source.candidates(max_bytes=10**6)}
    images = {name: data for name, data in found.items() if name.startswith("0")}
    assert images == {f"{index:05d}.jpg": encode_face(0, index, 32) for index in range(4)}
    assert source.fingerprint() == open_source(config(source=make_source(kind, tmp_path))).fingerprint()


def test_at_most_one_byte_more_than_the_budget_is_read(tmp_path: Path) -> None:
    for kind in ("folder", "zip", "tar"):
        source = open_source(config(source=make_source(kind, tmp_path)))
        assert max(len(candidate.data) for candidate in source.candidates(max_bytes=100)) == 101


@pytest.mark.parametrize("source", ["/does/not/exist", "ftp://host/x.zip", "synthetic://?cuont=3", "synthetic://?count=many"])
def test_a_source_that_cannot_be_opened_is_named(source: str) -> None:
    with pytest.raises(BadInput, match=r"data\.source"):
        open_source(config(source=source))


def test_a_folder_or_zip_without_images_says_which_files_are_taken(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with zipfile.ZipFile(tmp_path / "texts.zip", "w") as archive:
        archive.writestr("readme.txt", "hello")
    for name in ("empty", "texts.zip"):
        with pytest.raises(BadInput, match="contains no images") as raised:
            open_source(config(source=str(tmp_path / name)))
        assert ".jpg" in str(raised.value.hint)


def test_celeba_needs_somebodys_consent() -> None:
    with pytest.raises(BadInput, match="must be accepted"):
        require_consent(config(licence="CelebA-HQ research only"))
    require_consent(config(licence="CelebA-HQ research only", licence_accepted_by="ada"))
    require_consent(config(licence="CC0-1.0"))


def accepted(index: int) -> Accepted:
    verdict = judge(encode_face(0, index, 32), config())
    assert isinstance(verdict, Accepted)
    return verdict


def test_shards_are_readable_tars_whose_table_points_at_the_bytes(tmp_path: Path) -> None:
    images = [accepted(index) for index in range(40)]
    writer = ShardWriter(tmp_path, shard_bytes=20_000)
    places = [writer.add(image, {"split": "train"}) for image in images]
    writer.close()
    assert len(writer.paths) > 1
    assert sum(writer.counts) == 40
    for image, place in zip(images, places, strict=True):
        raw = (tmp_path / place.shard).read_bytes()
        assert raw[place.offset : place.offset + place.size_bytes] == image.data
    with tarfile.open(writer.paths[0]) as tar:
        names = tar.getnames()
        facts = tar.extractfile(names[1])
        assert facts is not None
        assert names[:2] == [f"{images[0].key}.jpg", f"{images[0].key}.json"]
        assert json.load(facts) == {"split": "train"}


def test_the_same_images_give_the_same_shard_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        writer = ShardWriter(tmp_path / name, shard_bytes=2**20)
        for index in range(3):
            writer.add(accepted(index), {"split": "train"})
        writer.close()
    assert (tmp_path / "a/shard-00000.tar").read_bytes() == (tmp_path / "b/shard-00000.tar").read_bytes()
