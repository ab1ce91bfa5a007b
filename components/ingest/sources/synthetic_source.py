"""Synthetic faces as a source: `synthetic://?count=N&seed=N&size=N`. How a face is drawn is in `synthetic.py`."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qs

from components.errors import BadInput
from components.ingest.candidates import Candidate
from components.ingest.limits import Budget
from components.ingest.sources.kinds import Reach, SourceKind
from components.ingest.sources.synthetic import encode_face

_MAX_IMAGES, _MAX_PX = 10**7, 2048


@dataclass(frozen=True)
class SyntheticSource:
    """Synthetic faces, drawn when they are read."""

    count_images: int
    seed: int
    image_px: int

    def fingerprint(self) -> str:
        return hashlib.sha256(f"synthetic 1 {self.count_images} {self.seed} {self.image_px}".encode()).hexdigest()

    def count(self) -> int | None:
        return self.count_images

    def provenance(self) -> str:
        return f"synthetic://?count={self.count_images}&seed={self.seed}&size={self.image_px}"

    def archive_path(self) -> Path | None:
        return None

    def candidates(self, budget: Budget) -> Iterator[Candidate]:
        for index in range(self.count_images):
            yield Candidate(f"{index:05d}.jpg", encode_face(self.seed, index, self.image_px))


def open_synthetic(source: str, image_px: int, reach: Reach | None) -> SyntheticSource:
    """Open `synthetic://?count=N&seed=N&size=N`; the size is `image_px` unless given.

    Raises:
        BadInput: naming the parameter that is unknown or out of bounds.
    """
    parameters = {name: values[-1] for name, values in parse_qs(source.partition("?")[2], keep_blank_values=True).items()}
    if unknown := sorted(set(parameters) - {"count", "seed", "size"}):
        raise BadInput(
            f"data.source synthetic:// has no parameter {', '.join(unknown)}", hint="write synthetic://?count=2000&seed=0&size=256"
        )
    try:
        count, seed = int(parameters.get("count", "2000")), int(parameters.get("seed", "0"))
        size = int(parameters.get("size", str(image_px)))
    except ValueError as error:
        raise BadInput(f"data.source synthetic:// takes whole numbers: {error}") from error
    for name, value, least, most in (("count", count, 1, _MAX_IMAGES), ("seed", seed, 0, 2**63), ("size", size, 8, _MAX_PX)):
        if not least <= value <= most:
            raise BadInput(f"data.source synthetic:// takes a {name} from {least} to {most} (given: {value})")
    return SyntheticSource(count_images=count, seed=seed, image_px=size)


KIND = SourceKind(("synthetic",), "synthetic://?count=2000&seed=0", open_synthetic)
