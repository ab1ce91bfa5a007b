"""`report.html`: what went in and what did not, to look at.

Promises: one file without scripts or links, readable offline; names and details from the source are escaped; images are re-encoded in the
workers, so that no byte of the source is in the page; the same images give the same page. Numbers for machines are in the table.
"""

import base64
from collections.abc import Callable, Iterator
from html import escape
from itertools import islice
from pathlib import Path

from components.ingest.dataset.ledger import Ledger
from components.ingest.verdicts import MEANINGS, RULES
from components.manifests import DatasetManifest

_SHOWN = 48
_BINS = 32
_BRIGHTNESS = "SELECT 0.299 * mean_r + 0.587 * mean_g + 0.114 * mean_b AS v FROM images"
_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 68rem; padding: 0 1rem; color: #1d2530; background: #fff }
h1 { font-size: 1.5rem; margin-bottom: .2rem }
h2 { font-size: 1.1rem; margin: 2rem 0 .5rem }
.mono { font: 13px ui-monospace, monospace; overflow-wrap: anywhere }
.muted { color: #66707c; font-weight: normal }
table { border-collapse: collapse }
td, th { padding: .15rem .9rem .15rem 0; text-align: left; vertical-align: top }
td.n { text-align: right }
.bar { display: inline-block; height: .7rem; background: #3b6fb6; min-width: 1px }
.bar.bad { background: #c0503c }
.sheet { display: grid; grid-template-columns: repeat(auto-fill, minmax(96px, 1fr)); gap: 6px }
.sheet figure { margin: 0; font-size: 11px; overflow: hidden; overflow-wrap: anywhere; line-height: 1.25 }
.sheet img, .sheet .none { width: 96px; height: 96px; object-fit: contain; background: #eef1f4; display: block }
.sheet .none { display: flex; align-items: center; justify-content: center; color: #8a939d }
.charts { display: flex; flex-wrap: wrap; gap: 2rem }
figure.chart { margin: 0 }
figure.chart figcaption { font-size: 13px; color: #66707c }
svg rect { fill: #3b6fb6 }
svg text { font: 10px sans-serif; fill: #66707c }
"""


def write_report(ledger: Ledger, manifest: DatasetManifest, path: Path, *, thumbnail: Callable[[bytes], bytes]) -> None:
    """Write the page about the dataset `manifest` as `ledger` knows it; `thumbnail` makes a small JPEG of an image's bytes."""
    title = escape(f"{manifest.name}: {manifest.num_images + manifest.num_held_out} images of {manifest.image_px} pixels")
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    with path.open("w", encoding="utf-8") as page:
        page.write(f'<!doctype html><html lang="en"><meta charset="utf-8"><meta http-equiv="Content-Security-Policy" content="{policy}">')
        page.write(f"<title>{title}</title><style>{_STYLE}</style><h1>{title}</h1>")
        for section in (_facts(manifest), _verdicts(manifest), _charts(ledger), _accepted(ledger, thumbnail), _rejected(ledger, thumbnail)):
            page.writelines(section)


def _facts(manifest: DatasetManifest) -> Iterator[str]:
    shards = manifest.shards
    facts = {
        "digest": manifest.digest,
        "source": manifest.source,
        "licence": f"{manifest.licence} (accepted by: {manifest.licence_accepted_by})",
        "images": f"{manifest.num_images} to train on, {manifest.num_held_out} held out",
        "stored": f"{len(shards)} shard{'s' if len(shards) > 1 else ''}, {sum(shard.size_bytes for shard in shards) / 1e6:.1f} MB",
        "made with": ", ".join(f"{name} {version}" for name, version in manifest.tools.items()),
    }
    rows = "".join(f'<tr><th>{escape(name)}</th><td class="mono">{escape(value)}</td></tr>' for name, value in facts.items())
    yield f"<table>{rows}</table>"


def _verdicts(manifest: DatasetManifest) -> Iterator[str]:
    counts = [(verdict, count, False) for verdict, count in manifest.accepted.items()]
    counts += [(verdict, count, True) for verdict, count in manifest.rejected.items()]
    largest = max(count for _, count, _ in counts)
    total = sum(count for _, count, _ in counts)
    yield "<h2>Verdicts</h2><table><tr><th>verdict</th><th>files</th><th>share</th><th></th><th></th></tr>"
    for verdict, count, bad in counts:
        bar = f'<span class="bar{" bad" if bad else ""}" style="width:{count / largest * 16:.2f}rem"></span>'
        meaning = MEANINGS[verdict] if bad else ", ".join(RULES[rule] for rule in verdict.split("+"))  # type: ignore[index]
        yield f'<tr><td>{escape(verdict)}</td><td class="n">{count}</td><td class="n">{count / total:.2%}</td><td>{bar}</td>'
        yield f'<td class="muted">{escape(meaning)}</td></tr>'
    yield "</table>"
    if manifest.ignored:
        yield f'<p class="muted">{manifest.ignored} other files were ignored: their names are not those of images.</p>'


def _charts(ledger: Ledger) -> Iterator[str]:
    yield '<h2>The images</h2><div class="charts">'
    yield _chart(ledger, "brightness (mean, 0 to 1)", _BRIGHTNESS, (0.0, 1.0))
    yield _chart(ledger, "contrast (standard deviation, 0 to 0.5)", "SELECT (std_r + std_g + std_b) / 3 AS v FROM images", (0.0, 0.5))
    yield _chart(ledger, "bytes as stored", "SELECT size_bytes AS v FROM images", None)
    yield _chart(ledger, "shorter side as it came, in pixels", "SELECT MIN(width, height) AS v FROM seen WHERE accepted", None)
    yield "</div>"


def _chart(ledger: Ledger, name: str, values: str, ends: tuple[float, float] | None) -> str:
    """Return a histogram of what the query `values` selects as v, between `ends` or between its extremes."""
    low, high = ends or ledger.rows(f"SELECT MIN(v), MAX(v) FROM ({values})")[0]  # noqa: S608 - the queries are ours
    step = (high - low) / _BINS or 1
    bins = f"SELECT MAX(0, MIN({_BINS - 1}, CAST((v - {low}) / {step!r} AS INTEGER))) AS bin FROM ({values})"  # noqa: S608
    counts = ledger.rows(f"SELECT bin, COUNT(*) FROM ({bins}) GROUP BY bin ORDER BY bin")  # noqa: S608
    largest = max((count for _, count in counts), default=1)
    bars = "".join(
        f'<rect x="{at * 7}" y="{80 - 80 * count / largest:.1f}" width="6" height="{80 * count / largest:.1f}"/>' for at, count in counts
    )
    labels = f'<text x="0" y="93">{low:g}</text><text x="{_BINS * 7}" y="93" text-anchor="end">{high:g}</text>'
    return (
        f'<figure class="chart"><svg width="{_BINS * 7}" height="96">{bars}{labels}</svg><figcaption>{escape(name)}</figcaption></figure>'
    )


def _accepted(ledger: Ledger, thumbnail: Callable[[bytes], bytes]) -> Iterator[str]:
    # The order of digests is as good as a random one, and always the same.
    shown = list(islice(ledger.images(), _SHOWN))
    yield f'<h2>Accepted <span class="muted">({len(shown)} of {ledger.accepted})</span></h2><div class="sheet">'
    marks = ",".join("?" * len(shown))
    names = dict(
        ledger.rows(
            f"SELECT i.sha256, s.source_name FROM images i JOIN seen s USING (n) WHERE i.sha256 IN ({marks})",  # noqa: S608 - only marks
            *(image.sha256 for image in shown),
        )
    )
    for image in shown:
        yield _tile(thumbnail(ledger.data(image)), names[image.sha256], "")
    yield "</div>"


def _rejected(ledger: Ledger, thumbnail: Callable[[bytes], bytes]) -> Iterator[str]:
    for code, count in ledger.rejected.items():
        tiles = ledger.rows(
            "SELECT thumbnail, source_name, detail, sha256 FROM seen WHERE NOT accepted AND verdict=? ORDER BY n LIMIT 12", code
        )
        yield f'<h2>{escape(code)} <span class="muted">({len(tiles)} of {count})</span></h2>'
        yield f'<p class="muted">{escape(MEANINGS.get(code, ""))}</p><div class="sheet">'  # type: ignore[call-overload]
        for image, name, detail, sha256 in tiles:
            twin = ledger.image(sha256) if sha256 else None
            yield _tile(image or (thumbnail(ledger.data(twin)) if twin else b""), name, detail or "")
        yield "</div>"


def _tile(image: bytes, name: str, detail: str) -> str:
    source = f"data:image/jpeg;base64,{base64.b64encode(image).decode()}"
    shown = f'<img src="{source}" alt="">' if image else '<div class="none">no image</div>'
    what = f'<br><span class="muted">{escape(detail[:80])}</span>' if detail else ""
    return f'<figure title="{escape(f"{name}: {detail}")}">{shown}{escape(name[-60:])}{what}</figure>'
