"""The Hugging Face hub as a source, through the real huggingface-hub and a server on loopback."""

import io
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from celebdit_testing.hub import NAME, Hub, using_hub
from celebdit_testing.packed import parquet_of, tar_of

from components.errors import BadInput, DataRefused, TemporaryFailure
from components.ingest.limits import Budget
from components.ingest.sources.huggingface import HubSource
from components.ingest.sources.kinds import Reach
from components.ingest.sources.synthetic import encode_face
from components.storage import connect

BUDGET = Budget(max_image_bytes=10**6, max_total_bytes=2**30, max_entries=1000, max_ratio=200)
FACES = [encode_face(0, index, 32) for index in range(8)]


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    files = {f"data/train-{part:05d}-of-00002.parquet": parquet_of(FACES[part * 4 : part * 4 + 4]) for part in range(2)}
    with using_hub({**files, "README.md": b"---\nlicense: other"}, tmp_path / "hf") as server:
        yield server


@pytest.fixture
def reach(s3_credentials: None, tmp_path: Path) -> Reach:
    return Reach(connect("http://127.0.0.1:9"), tmp_path / "downloads")


def images_of(source: HubSource) -> list[bytes]:
    return [candidate.data for candidate in source.candidates(BUDGET) if candidate.refused is None]


@pytest.mark.parametrize("layout", ["images", "zip", "tars", "one file"])
def test_other_layouts_of_the_hub_are_read(hub: Hub, reach: Reach, layout: str) -> None:
    zipped = io.BytesIO()
    with zipfile.ZipFile(zipped, "w") as archive:
        for index, data in enumerate(FACES):
            archive.writestr(f"{index}.jpg", data)
    hub.files = {
        "images": {f"train/{index}.jpg": data for index, data in enumerate(FACES)} | {"train/metadata.csv": b"a,b"},
        "zip": {"faces.zip": zipped.getvalue()},
        "tars": {"0.tar": tar_of({"0.jpg": FACES[0]}), "1.tar": tar_of({"1.jpg": FACES[1]})},
        "one file": {"data/a.parquet": parquet_of(FACES[:3]), "data/b.parquet": parquet_of(FACES[3:])},
    }[layout] | {"README.md": b"# Faces", ".gitattributes": b"*"}
    source = HubSource(f"datasets/{NAME}@v1" + ("/data/b.parquet" if layout == "one file" else ""), reach)
    candidates = [candidate for candidate in source.candidates(BUDGET) if candidate.refused is None]
    assert len(candidates) == {"images": 8, "zip": 8, "tars": 2, "one file": 5}[layout]
    if layout != "zip":
        assert {candidate.data for candidate in candidates} <= set(FACES)


def test_files_that_arrive_corrupt_are_refused(hub: Hub, reach: Reach) -> None:
    hub.corrupt = set(hub.files)
    with pytest.raises(DataRefused, match="arrives corrupt"):
        images_of(HubSource(f"datasets/{NAME}", reach))


def test_a_hub_that_is_busy_is_ridden_out_and_one_that_is_down_is_temporary(hub: Hub, reach: Reach) -> None:
    hub.statuses = [503, 502]
    assert images_of(HubSource(f"datasets/{NAME}", reach)) == FACES
    hub.statuses = [503] * 1000
    with pytest.raises(TemporaryFailure, match="the Hugging Face hub failed") as failure:
        images_of(HubSource(f"datasets/{NAME}", reach, deadline_s=0.0))
    assert failure.value.exit_code == 75


@pytest.mark.parametrize(("gated", "message"), [(True, "only to those who accepted its terms"), (False, "or it is private")])
def test_missing_credentials_and_terms_say_what_to_do(
    hub: Hub, reach: Reach, monkeypatch: pytest.MonkeyPatch, gated: bool, message: str
) -> None:
    hub.token, hub.gated = "hf_right", gated
    with pytest.raises(BadInput, match=message) as refused:
        images_of(HubSource(f"datasets/{NAME}", reach))
    assert "set HF_TOKEN" in str(refused.value.hint)
    monkeypatch.setenv("HF_TOKEN", "hf_right")
    assert images_of(HubSource(f"datasets/{NAME}", reach)) == FACES


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("datasets/owner/others", "has no dataset owner/others"),
        (f"datasets/{NAME}@nothing", "has no such revision"),
        (f"datasets/{NAME}/nothing", "has no files"),
    ],
)
def test_what_the_hub_does_not_have_is_named(hub: Hub, reach: Reach, address: str, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        images_of(HubSource(address, reach))


@pytest.mark.parametrize("address", ["models/owner/name", "datasets/owner", "owner/name", "datasets/owner/name/../x"])
def test_an_address_of_another_form_says_how_to_write_it(address: str) -> None:
    with pytest.raises(BadInput, match="is not a dataset on the hub"):
        HubSource(address, None)


def test_a_name_that_leaves_the_folder_is_not_written(hub: Hub, reach: Reach, tmp_path: Path) -> None:
    hub.files = {"../../../escape.jpg": FACES[0], "a/../../escape.jpg": FACES[1], "good.jpg": FACES[2]}
    found = {candidate.name: candidate.refused for candidate in HubSource(f"datasets/{NAME}", reach).candidates(BUDGET)}
    assert {name: refused.code for name, refused in found.items() if refused is not None} == {
        "../../../escape.jpg": "unsafe_name",
        "a/../../escape.jpg": "unsafe_name",
    }
    assert hub.downloads == ["good.jpg"]
    assert not list(tmp_path.rglob("escape.*"))


def test_without_the_library_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(BadInput, match="need the package huggingface-hub") as refused:
        HubSource(f"datasets/{NAME}", None)
    assert refused.value.hint == "make extras"
