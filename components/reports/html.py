"""Small HTML pages that are complete in themselves: for KFP's run page, MLflow's artifact view and a browser alike.

Promises: every text is escaped, pictures are embedded, nothing is fetched from anywhere and no script runs. What the pages say is
decided by the steps.
"""

import base64
import html
from collections.abc import Iterable, Iterator, Mapping, Sequence

_STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:70rem;padding:0 1rem;color:#1b1f24}"
    "table{border-collapse:collapse;margin:.5rem 0 1.5rem}th,td{border:1px solid #d0d7de;padding:.3rem .7rem;text-align:left}"
    "th{background:#f6f8fa}td.number{text-align:right;font-variant-numeric:tabular-nums}img{max-width:100%;image-rendering:pixelated}"
    ".pass{color:#116329}.fail{color:#a40e26}code{font-size:90%;word-break:break-all}"
)

CONTACT_CAPTION = "sample | nearest training image, the closest pairs first; 1 is the usual distance between two training images, 0 a copy"


def page(title: str, parts: Iterable[str], *, kind: str = "") -> str:
    """Return a whole page; `parts` are HTML already."""
    mark = f' class="{html.escape(kind)}"' if kind else ""
    head = f'<meta charset="utf-8"><title>{html.escape(title)}</title><style>{_STYLE}</style>'
    return f'<!doctype html><html lang="en"><head>{head}</head><body><h1{mark}>{html.escape(title)}</h1>{"".join(parts)}</body></html>\n'


def heading(text: str) -> str:
    """Return a section's heading."""
    return f"<h2>{html.escape(text)}</h2>"


def paragraph(text: str) -> str:
    """Return a paragraph."""
    return f"<p>{html.escape(text)}</p>"


def bullets(texts: Iterable[str]) -> str:
    """Return a list."""
    return f"<ul>{''.join(f'<li>{html.escape(text)}</li>' for text in texts)}</ul>"


def table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return a table; numbers are set right."""
    head = "".join(f"<th>{html.escape(column)}</th>" for column in columns)
    return f"<table><tr>{head}</tr>{''.join(f'<tr>{_cells(row)}</tr>' for row in rows)}</table>"


def details(facts: Mapping[str, object]) -> str:
    """Return a table of facts by name; what is nested is shown as `outer.inner`."""
    return table(("what", "value"), sorted(_flat(facts)))


def _flat(facts: Mapping[str, object], path: str = "") -> Iterator[tuple[str, str]]:
    for key, value in facts.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{path}{key}.")
        else:
            yield f"{path}{key}", ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def picture(png: bytes, caption: str) -> str:
    """Return an embedded PNG with what it shows."""
    text = html.escape(caption)
    return (
        f'<figure><img alt="{text}" src="data:image/png;base64,{base64.b64encode(png).decode()}"><figcaption>{text}</figcaption></figure>'
    )


def _cells(row: Sequence[object]) -> str:
    return "".join(
        f'<td class="number">{value:.5g}</td>' if isinstance(value, float) else f"<td>{html.escape(str(value))}</td>" for value in row
    )
