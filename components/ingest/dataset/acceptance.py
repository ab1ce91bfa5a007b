"""Whether enough images of a source were accepted, and what to tell a person if not: which files, why, and where all of them are shown.

Promises: of two limits that fail the cause is reported: images that were rejected before images that are missing for it.
"""

from collections.abc import Callable
from pathlib import Path

from components.errors import DataRefused, shorten
from components.ingest.config import DataConfig
from components.ingest.dataset.ledger import Ledger
from components.ingest.dataset.report import write_refusal
from components.ingest.verdicts import EXTRA, MEANINGS

_INSTALL = "read HEIC and JPEG XL by `make extras`, or convert them to JPEG or PNG; "
_CONVERT = "convert them to JPEG or PNG; "
_NAMES_SHOWN = 3
_REASONS_SHOWN = 8
_REASON_CHARACTERS = 300
"""More than the details of verdicts have, which are cut where they are made: cut twice, they lose what they say."""


def require_accepted(config: DataConfig, ledger: Ledger, *, report: Path, thumbnail: Callable[[bytes], bytes]) -> None:
    """Check the limits `min_images` and `max_rejected`; if one fails, write the page `report` about the images that were seen.

    Raises:
        DataRefused: with names of files for each reason, and the page.
    """
    accepted, by_code = ledger.accepted, ledger.rejected
    rejected = sum(by_code.values())
    reasons = ", ".join(f"{code} {count}" for code, count in sorted(by_code.items(), key=lambda item: -item[1])) or "none rejected"
    too_many = rejected / max(1, accepted + rejected) > config.max_rejected
    if accepted >= config.min_images and not too_many:
        return
    if too_many:
        left = "" if accepted >= config.min_images else f"; {accepted} are left, data.min_images is {config.min_images}"
        text = f"{rejected} of {accepted + rejected} images were rejected, data.max_rejected is {config.max_rejected:g} ({reasons}){left}"
        hint = f"{_advice(ledger)}clean the source, or {_limit(rejected, accepted)}"
    else:
        text = f"{accepted} images were accepted, data.min_images is {config.min_images} ({reasons})"
        hint = "check data.source, or lower data.min_images"
    lines = [text, *_examples(ledger)]
    if accepted + rejected:
        report.parent.mkdir(parents=True, exist_ok=True)
        write_refusal(ledger, text, config, report, thumbnail=thumbnail)
        lines.append(f"all of them: {report}")
    raise DataRefused("\n".join(lines), hint=hint)


def _advice(ledger: Ledger) -> str:
    """Return what to do about formats that are not read; the extra helps only where a file needs it."""
    if "unsupported_format" not in ledger.rejected:
        return ""
    needs_extra = ledger.value("SELECT COUNT(*) FROM seen WHERE verdict='unsupported_format' AND instr(detail, ?)", EXTRA)
    return _INSTALL if needs_extra else _CONVERT


def _limit(rejected: int, accepted: int) -> str:
    """Return how to allow what was rejected: with the value, in whole percent, unless that would be most of the images."""
    seen = accepted + rejected
    return f"accept this with data.max_rejected={-(-100 * rejected // seen) / 100:g}" if 2 * rejected < seen else "raise data.max_rejected"


def _examples(ledger: Ledger) -> list[str]:
    """Return a line per reason with the names of some files."""
    lines = []
    by_code = sorted(ledger.rejected.items(), key=lambda item: -item[1])
    for code, count in by_code[:_REASONS_SHOWN]:
        rows = ledger.rows("SELECT source_name FROM seen WHERE NOT accepted AND verdict=? ORDER BY n LIMIT ?", code, _NAMES_SHOWN)
        names = ", ".join(shorten(name if name.isprintable() else repr(name)) for (name,) in rows)
        more = "" if count <= len(rows) else f" and {count - len(rows)} more"
        lines.append(f"{code} ({_reason(ledger, code)}): {names}{more}")
    return lines


def _reason(ledger: Ledger, code: str) -> str:
    """Return what the code means, and what was said of the files if it is the same for all of them."""
    meaning = MEANINGS.get(code, "unknown")  # type: ignore[call-overload]
    details = ledger.rows("SELECT DISTINCT detail FROM seen WHERE NOT accepted AND verdict=? LIMIT 2", code)
    common = details[0][0] if len(details) == 1 else ""
    if not common or common in meaning or common.startswith(meaning):
        return str(meaning)
    reason = shorten(common, max_characters=_REASON_CHARACTERS)
    return reason if code == "unsupported_format" else f"{meaning}: {reason}"  # its meaning advises on all formats, the reason on this one
