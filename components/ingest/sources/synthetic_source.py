"""Synthetic faces as a source: `synthetic://?count=N&seed=N&size=N`. How a face is drawn is in `synthetic.py`."""

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qs

from components.errors import BadInput, shorten
from components.ingest.candidates import Candidate
from components.ingest.limits import Budget
from components.ingest.sources.kinds import Reach, SourceKind

_MAX_IMAGES, _MAX_PX = 10**7, 2048
_EXAMPLE = "synthetic://?count=2000&seed=0&size=256"


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
        from components.ingest.sources.synthetic import encode_face  # noqa: PLC0415 - imports NumPy, which a step that reads no image does without

        for index in range(self.count_images):
            yield Candidate(f"{index:05d}.jpg", encode_face(self.seed, index, self.image_px))

    def require_unchanged(self) -> None:
        """Return at once: faces are drawn from the numbers that the fingerprint is of."""


def open_synthetic(source: str, image_px: int, reach: Reach | None) -> SyntheticSource:
    """Open `synthetic://?count=N&seed=N&size=N`; the size is `image_px` unless given.

    Raises:
        BadInput: naming what is unknown, given twice, no whole number or out of bounds.
    """
    numbers = {"count": 2000, "seed": 0, "size": image_px, **_parameters(source)}
    count, seed, size = numbers["count"], numbers["seed"], numbers["size"]
    for name, value, least, most in (("count", count, 1, _MAX_IMAGES), ("seed", seed, 0, 2**63), ("size", size, 8, _MAX_PX)):
        if not least <= value <= most:
            raise BadInput(f"data.source synthetic:// takes a {name} from {least} to {most} (given: {value})")
    return SyntheticSource(count_images=count, seed=seed, image_px=size)


def _parameters(source: str) -> dict[str, int]:
    place, _, query = source.partition("://")[2].partition("?")
    if place:
        raise BadInput(f"data.source synthetic:// takes parameters after a ? only, not {shorten(repr(place))}", hint=f"write {_EXAMPLE}")
    parameters = parse_qs(query, keep_blank_values=True)
    if unknown := sorted(set(parameters) - {"count", "seed", "size"}):
        raise BadInput(f"data.source synthetic:// has no parameter {shorten(', '.join(unknown))}", hint=f"write {_EXAMPLE}")
    for name, texts in parameters.items():
        if len(texts) > 1:
            raise BadInput(f"data.source synthetic:// has {len(texts)} values of {name}", hint=f"write {_EXAMPLE}")
        if not re.fullmatch("-?[0-9]{1,20}", texts[0]):
            raise BadInput(
                f"data.source synthetic:// takes whole numbers, and {name} is {shorten(repr(texts[0]))}", hint=f"write {_EXAMPLE}"
            )
    return {name: int(texts[0]) for name, texts in parameters.items()}


KIND = SourceKind(("synthetic",), "synthetic://?count=2000&seed=0", open_synthetic)
