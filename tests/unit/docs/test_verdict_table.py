"""The tables of rules and verdicts in docs/data.md are those of the code."""

import re
from pathlib import Path

from components.ingest.verdicts import MEANINGS, RULES

PAGE = (Path(__file__).parents[3] / "docs" / "data.md").read_text()
VERDICTS = PAGE.partition("## Understand the verdicts")[2].partition("\n## ")[0]


def first_cells(heading: str) -> set[str]:
    """The code words in the first column of the table with this heading."""
    table = VERDICTS.partition(f"| {heading} |")[2].partition("\n\n")[0]
    rows = [line for line in table.splitlines() if line.startswith("| `")]
    return {word for row in rows for word in re.findall(r"`(\w+)`", row.split("|")[1])}


def test_every_rule_has_its_row() -> None:
    assert first_cells("rule") == set(RULES)


def test_every_verdict_has_its_row() -> None:
    assert first_cells("rejected as") == set(MEANINGS)
