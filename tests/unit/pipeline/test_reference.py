"""The generated pages of docs/: complete, up to date, and stale when a model changes."""

from pathlib import Path

import pytest
from pydantic import Field

from model.frozen_config import FrozenConfig
from pipeline import reference
from pipeline.config import section_kinds
from pipeline.variants import VARIANTS


def test_the_generated_pages_are_what_the_code_says() -> None:
    assert reference.stale_pages() == [], "run `make docs`"


def test_a_page_that_differs_or_is_missing_is_stale_and_written_again(tmp_path: Path) -> None:
    assert reference.stale_pages(tmp_path) == list(reference.PAGES)
    assert reference.write_pages(tmp_path) == list(reference.PAGES)
    assert reference.write_pages(tmp_path) == []
    page = tmp_path / "configuration.md"
    page.write_text(page.read_text().replace("| > 0, <= 1 |", "| > 0 |", 1))
    assert reference.stale_pages(tmp_path) == ["configuration.md"]


def test_every_setting_has_a_row_under_its_section() -> None:
    page = reference.configuration_page()
    for section, kind in section_kinds().items():
        text = page.split(f"\n## {section}\n")[1].split("\n## ")[0]
        rows = [line.split(" | ")[0] for line in text.splitlines() if line.startswith("| `")]
        assert rows == [f"| `{name}`" for name in kind.model_fields]


def test_every_variant_is_named_at_its_settings() -> None:
    rows = reference.configuration_page()
    for variant in VARIANTS:
        for setting in variant.settings:
            assert any(
                line.startswith(f"| `{setting.partition('.')[2]}` |") and f"`{variant.choice}` {variant.words}" in line
                for line in rows.splitlines()
            ), setting


def test_each_example_of_a_text_is_code_of_its_own() -> None:
    teacher = section_kinds()["distill"].model_fields["teacher"]
    assert reference.type_text(teacher) == "text like `53e830b04a95c9d2` or `53e830b04a95c9d2@900`"


class Example(FrozenConfig):
    """An example."""

    rates: tuple[float, float] = Field((0.5, 1.0), description="this | that")
    limit: int | None = Field(None, gt=0, lt=2**40)


@pytest.mark.parametrize(
    "row",
    [
        "| `rates` | list of 2 numbers | `[0.5, 1.0]` |  |  | this \\| that |",
        "| `limit` | integer | unset | > 0, < 2^40 |  |  |",
    ],
)
def test_a_row_shows_type_default_bounds_and_meaning(row: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reference, "section_kinds", lambda: {"example": Example})
    assert row in reference.configuration_page().splitlines()
