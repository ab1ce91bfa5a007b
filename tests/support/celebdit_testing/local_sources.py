"""Sources on this machine: the same images in a folder, a zip or a tar, and what a source gives of them."""

import io
import tarfile
import zipfile
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from celebdit_testing.corpus import PX

from components.ingest.candidates import Candidate, Source, printable_name
from components.ingest.config import DataConfig
from components.ingest.limits import Budget
from components.ingest.sources.open_source import open_source
from components.ingest.sources.synthetic import encode_face
from components.ingest.verdicts import Rejected
from components.ingest.zip_entry import EntryDamaged, read_zip_entry

BUDGET = Budget(max_image_bytes=10**6, max_total_bytes=2**32, max_entries=10**6, max_ratio=200)


def config(**changes: Any) -> DataConfig:
    values: dict[str, Any] = {"name": "faces", "source": "synthetic://?count=4", "image_px": PX}
    return DataConfig(**{**values, **changes})


def opened(source: str | Path, **changes: Any) -> Source:
    source_reader = open_source(config(source=str(source), **changes))
    assert source_reader is not None
    return source_reader


def read(source: Source, budget: Budget = BUDGET) -> Iterator[Candidate]:
    """The candidates of a source with their bytes, those of an archive read as a worker does."""
    archive = source.archive_path()
    with archive.open("rb") if archive else nullcontext() as file:
        for candidate in source.candidates(budget):
            if candidate.packed is None or file is None:
                yield candidate
                continue
            try:
                data, _ = read_zip_entry(file.fileno(), candidate.packed, limit=budget.max_image_bytes + 1)
                yield candidate._replace(data=data, packed=None)
            except EntryDamaged as damaged:
                yield candidate._replace(refused=Rejected("damaged_entry", str(damaged)), packed=None)


def verdicts(candidates: Iterator[Candidate]) -> dict[str, str]:
    return {printable_name(c.name): c.refused.code if c.refused else "as_is" for c in candidates}


def make_source(kind: str, folder: Path) -> Path:
    images = {f"deep/er/{index:05d}.jpg": encode_face(0, index, PX) for index in range(4)}
    clutter = {"readme.txt": b"hello", "__MACOSX/._00000.jpg": b"junk", "deep/._00001.jpg": b"junk"}
    if kind == "folder":
        for name, data in (images | clutter).items():
            path = folder / "tree" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        return folder / "tree"
    path = folder / f"images.{kind}"
    if kind == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            for name, data in (images | clutter).items():
                archive.writestr(zipfile.ZipInfo(name, date_time=(2000, 1, 1, 0, 0, 0)), data)
        return path
    with tarfile.open(path, "w:" + kind[4:]) as tar:  # type: ignore[call-overload]
        for name, data in (images | clutter).items():
            header = tarfile.TarInfo(name)
            header.size = len(data)
            tar.addfile(header, io.BytesIO(data))
    if kind == "tar.gz":
        with path.open("r+b") as file:  # gzip notes the time; the same source again is to be the same bytes
            file.seek(4)
            file.write(bytes(4))
    return path
