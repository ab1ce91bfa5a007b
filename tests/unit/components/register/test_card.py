"""The model card: what it says of a student, and where it must be short, as MLflow's description of a version."""

import pytest
from celebdit_testing.recipes import dataset_manifest, tiny_recipe, tiny_student, trained_with
from celebdit_testing.registered import passed, report_of

from components.manifests import CheckpointManifest
from components.register.card import model_card
from components.registry.card_excerpt import excerpt_card
from model.config import Recipe

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


def card_of(recipe: Recipe) -> str:
    checkpoint = CheckpointManifest(
        run_key="a" * 16, uri="runs/1/checkpoints/1", digest="c" * 64, step=6, dataset_digest="d" * 64, recipe=trained_with(recipe)
    )
    return model_card("faces", checkpoint, dataset_manifest(), report_of(checkpoint), passed(checkpoint), recipe.sampling)


def test_a_card_of_a_student_offers_no_other_sampler() -> None:
    student, plain = card_of(tiny_student(steps=3)), card_of(tiny_recipe())
    assert "`num_steps` and `sampler` are 3 and `ddpm`: others are refused." in student
    assert ("- `heun`: " in plain, "- `heun`: " in student) == (True, False)


def test_a_card_says_how_to_name_a_version_that_is_not_the_champion() -> None:
    usage = card_of(tiny_recipe()).partition("## How to use it")[2].partition("```")[0]
    assert "`/3` in its place is version 3" in usage
