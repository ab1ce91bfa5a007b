"""The model card where it must be short: MLflow's description of a version."""

import pytest

from components.registry.card_excerpt import excerpt_card

CARD = (
    "# faces\n\nWhat it is.\n\n## Recipe\n\n```json\n"
    + '{"a": 1}\n' * 100
    + "```\n\n## Numbers\n\n| a |\n\n### Protocol\n\nx\n\n## Limits\n\nNone.\n"
)


@pytest.mark.parametrize("most", [len(CARD), len(CARD) + 1])
def test_a_card_that_fits_is_left_as_it_is(most: int) -> None:
    assert excerpt_card(CARD, most) == CARD


@pytest.mark.parametrize("most", range(100, len(CARD), 7))
def test_a_long_card_keeps_complete_sections_and_links_to_the_rest(most: int) -> None:
    text = excerpt_card(CARD, most)
    assert len(text) <= most
    assert text.startswith("# faces\n\n")
    assert text.endswith("README.md` among the files of this version._\n")
    assert text.count("```") in (0, 2), "no code is left open"
    assert all(section in CARD for section in text.rpartition("\n\n")[0].split("\n\n"))


def test_what_is_too_long_is_left_out_before_what_is_short() -> None:
    text = excerpt_card(CARD, 300)
    assert "## Recipe" not in text
    assert "## Limits\n\nNone." in text
