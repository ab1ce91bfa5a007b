"""The page `report.html` of a dataset: what was accepted, what was rejected and why, with examples.

Promises: one file without scripts or links, readable offline; names and details from the source are escaped; images are re-encoded in the
workers, so that no byte of the source is in the page; the same images give the same page. The same facts for machines are in the table.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from components.ingest.config import DataConfig
from components.ingest.dataset.ledger import Ledger
from components.ingest.dataset.smaller_copies import PROPOSED_BITS, smaller_copies
from components.ingest.verdicts import MEANINGS, RULES
from components.manifests import DatasetManifest
from components.reports.html import image_source, render

_SHOWN = 48
_COPIES_SHOWN = 12
_REASONS_SHOWN = 20
_BINS = 32
_BRIGHTNESS = "SELECT 0.299 * mean_r + 0.587 * mean_g + 0.114 * mean_b AS v FROM images"
_CONTRAST = "SELECT (std_r + std_g + std_b) / 3 AS v FROM images"
_SIZE = "SELECT size_bytes AS v FROM images"
_SIDE = "SELECT MIN(width, height) AS v FROM seen WHERE accepted"


@dataclass(frozen=True)
class VerdictRow:
    """How many files got one verdict: as a share of all, and relative to the most frequent one."""

    name: str
    count: int
    share: float
    relative: float
    rejected: bool
    meaning: str


@dataclass(frozen=True)
class Histogram:
    """Bars between `low` and `high`; their heights are relative to the highest."""

    name: str
    low: float
    high: float
    bars: list[float]


@dataclass(frozen=True)
class Tile:
    """One image with its name; without `source` there is no image to show."""

    source: str | None
    name: str
    detail: str


@dataclass(frozen=True)
class TileGroup:
    """Examples of one verdict, and how many there are in all."""

    name: str
    count: int
    meaning: str
    tiles: list[Tile]


def write_report(ledger: Ledger, manifest: DatasetManifest, path: Path, *, thumbnail: Callable[[bytes], bytes]) -> None:
    """Write the page about the dataset `manifest` as `ledger` knows it; `thumbnail` makes a small JPEG of an image's bytes."""
    ignored_reasons = ledger.ignored_reasons(shown=_REASONS_SHOWN)
    page = render(
        "dataset.html",
        title=f"{manifest.name}: {manifest.num_images + manifest.num_held_out} images of {manifest.image_px} pixels",
        facts=_facts(manifest),
        verdicts=_verdicts(manifest.accepted, manifest.rejected),
        ignored=manifest.ignored,
        ignored_reasons=ignored_reasons,
        other_ignored=manifest.ignored - sum(count for _, count in ignored_reasons),
        charts=_charts(ledger),
        groups=[_accepted_tiles(ledger, thumbnail), *_smaller_copies(ledger, thumbnail), *_rejected_tiles(ledger, thumbnail)],
    )
    path.write_text(page, encoding="utf-8")


def write_refusal(ledger: Ledger, reason: str, config: DataConfig, path: Path, *, thumbnail: Callable[[bytes], bytes]) -> None:
    """Write the page about images that became no dataset for `reason`."""
    accepted = dict(ledger.rows("SELECT verdict, COUNT(*) FROM seen WHERE accepted GROUP BY verdict ORDER BY 2 DESC, verdict"))
    ignored, ignored_reasons = ledger.verdicts["ignored"], ledger.ignored_reasons(shown=_REASONS_SHOWN)
    page = render(
        "dataset.html",
        title=f"{config.name}: refused",
        facts=[("why", reason), ("source", config.source)],
        verdicts=_verdicts(accepted, ledger.rejected),
        ignored=ignored,
        ignored_reasons=ignored_reasons,
        other_ignored=ignored - sum(count for _, count in ignored_reasons),
        charts=_charts(ledger) if accepted else [],
        groups=[*_rejected_tiles(ledger, thumbnail), *([_accepted_tiles(ledger, thumbnail)] if accepted else [])],
    )
    path.write_text(page, encoding="utf-8")


def _charts(ledger: Ledger) -> list[Histogram]:
    return [
        _histogram(ledger, "brightness (mean, 0 to 1)", _BRIGHTNESS, (0.0, 1.0)),
        _histogram(ledger, "contrast (standard deviation, 0 to 0.5)", _CONTRAST, (0.0, 0.5)),
        _histogram(ledger, "bytes as stored", _SIZE, None),
        _histogram(ledger, "shorter side in the source, in pixels", _SIDE, None),
    ]


def _facts(manifest: DatasetManifest) -> list[tuple[str, str]]:
    shards = manifest.shards
    return [
        ("digest", manifest.digest),
        ("source", manifest.source),
        ("licence", f"{manifest.licence} (accepted by: {manifest.licence_accepted_by})"),
        ("images", f"{manifest.num_images} to train on, {manifest.num_held_out} held out"),
        ("stored", f"{len(shards)} shard{'s' if len(shards) > 1 else ''}, {sum(shard.size_bytes for shard in shards) / 1e6:.1f} MB"),
        ("made with", ", ".join(f"{name} {version}" for name, version in manifest.tools.items())),
    ]


def _verdicts(accepted: Mapping[str, int], rejected: Mapping[str, int]) -> list[VerdictRow]:
    counts = [(verdict, count, False) for verdict, count in accepted.items()]
    counts += [(verdict, count, True) for verdict, count in rejected.items()]
    largest, total = max(count for _, count, _ in counts), sum(count for _, count, _ in counts)
    return [VerdictRow(name, count, count / total, count / largest, bad, _meaning(name, rejected=bad)) for name, count, bad in counts]


def _meaning(verdict: str, *, rejected: bool) -> str:
    return MEANINGS[verdict] if rejected else ", ".join(RULES[rule] for rule in verdict.split("+"))  # type: ignore[index]


def _histogram(ledger: Ledger, name: str, values: str, ends: tuple[float, float] | None) -> Histogram:
    """Count what the query `values` selects as v, between `ends` or between its extremes."""
    low, high = ends or ledger.rows(f"SELECT MIN(v), MAX(v) FROM ({values})")[0]  # noqa: S608 - the queries are ours
    step = (high - low) / _BINS or 1
    bins = f"SELECT MAX(0, MIN({_BINS - 1}, CAST((v - {low}) / {step!r} AS INTEGER))) AS bin FROM ({values})"  # noqa: S608
    counts = dict(ledger.rows(f"SELECT bin, COUNT(*) FROM ({bins}) GROUP BY bin ORDER BY bin"))  # noqa: S608
    largest = max(counts.values(), default=1)
    return Histogram(name, low, high, [counts.get(index, 0) / largest for index in range(_BINS)])


def _accepted_tiles(ledger: Ledger, thumbnail: Callable[[bytes], bytes]) -> TileGroup:
    # The order of digests is as good as a random one, and always the same.
    images = list(islice(ledger.images(), _SHOWN))
    marks = ",".join("?" * len(images))
    names = dict(
        ledger.rows(
            f"SELECT i.sha256, s.source_name FROM images i JOIN seen s USING (n) WHERE i.sha256 IN ({marks})",  # noqa: S608 - only marks
            *(image.sha256 for image in images),
        )
    )
    tiles = [_tile(thumbnail(ledger.data(image)), names[image.sha256], "") for image in images]
    return TileGroup("Accepted", ledger.accepted, "", tiles)


def _smaller_copies(ledger: Ledger, thumbnail: Callable[[bytes], bytes]) -> Iterator[TileGroup]:
    number, copies = smaller_copies(ledger, shown=_COPIES_SHOWN)
    if number:
        images = [(copy, ledger.image(copy.sha256)) for copy in copies]
        tiles = [_tile(thumbnail(ledger.data(image)), copy.name, f"like {copy.larger_name}") for copy, image in images if image is not None]
        yield TileGroup("Smaller copies", number, f"accepted; dropped with data.near_duplicate_bits={PROPOSED_BITS}", tiles)


def _rejected_tiles(ledger: Ledger, thumbnail: Callable[[bytes], bytes]) -> Iterator[TileGroup]:
    for code, count in ledger.rejected.items():
        rows = ledger.rows(
            "SELECT thumbnail, source_name, detail, sha256 FROM seen WHERE NOT accepted AND verdict=? ORDER BY n LIMIT 12", code
        )
        tiles = []
        for stored, name, detail, sha256 in rows:
            twin = ledger.image(sha256) if sha256 else None
            tiles.append(_tile(stored or (thumbnail(ledger.data(twin)) if twin else b""), name, detail or ""))
        yield TileGroup(code, count, MEANINGS.get(code, ""), tiles)  # type: ignore[call-overload]


def _tile(jpeg: bytes, name: str, detail: str) -> Tile:
    return Tile(image_source(jpeg, "jpeg") if jpeg else None, name, detail)
