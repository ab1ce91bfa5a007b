"""Parameters of runs in MLflow: runs that differ in what was chosen do not look alike, and a continued one logs the same values."""

from typing import Any

import pytest
from celebdit_testing.recipes import dataset_manifest, tiny_recipe, tiny_student

from components.resources import ResourcesConfig
from components.tracking.run_parameters import Parameters, pipeline_parameters, run_name, training_parameters
from model.config import Recipe

SCORED = {"score_every_steps": 2, "score_images": 8}


def of_pipeline(recipe: Recipe) -> Parameters:
    return pipeline_parameters(recipe, dataset_manifest(), recipe.sampling, ResourcesConfig(), "demo")


@pytest.mark.parametrize(
    ("changes", "added"),
    [
        ({"network": {"group_channels": 4}}, {"network.group_channels": 4}),
        ({"network": {"codec_dropout": 0.1}}, {"network.codec_dropout": 0.1}),
        ({"network": {"augmentation": 0.12}}, {"network.augmentation": 0.12}),
        (SCORED, {"training.scores": "mind of 8 images every 2 steps"}),
        ({**SCORED, "score_metrics": ("mind", "frechet")}, {"training.scores": "mind, frechet of 8 images every 2 steps"}),
        ({"score_every_steps": 3}, {"training.scores": "mind of 2000 images every 3 steps"}),
    ],
)
def test_what_is_off_by_default_is_a_parameter_where_it_is_on(changes: dict[str, Any], added: Parameters) -> None:
    plain = of_pipeline(tiny_recipe())
    assert of_pipeline(tiny_recipe(**changes)) == {**plain, **added}
    assert len(plain) <= 40


def test_the_training_keeps_what_decides_its_numbers_and_no_score_settings_which_may_change() -> None:
    """MLflow refuses another value of a parameter that a run has."""
    plain = training_parameters(tiny_recipe(), dataset_manifest())
    assert training_parameters(tiny_recipe(**SCORED), dataset_manifest()) == plain
    network = {"group_channels": 4, "codec_dropout": 0.1}
    chosen = training_parameters(tiny_recipe(network=network), dataset_manifest())
    assert chosen == {**plain, "network.group_channels": 4, "network.codec_dropout": 0.1}


def test_a_student_names_its_teacher() -> None:
    plain, student = tiny_recipe(), tiny_student(steps=3)
    added = {"distill.steps": 3, "distill.teacher": f"{'a' * 16}@6, EMA 0.1", "sampling.sampler": "ddpm", "sampling.num_steps": 3}
    assert of_pipeline(student) == {**of_pipeline(plain), **added}
    assert run_name("demo", student, dataset_manifest()) == "demo distilled to 3 x-pred lr1e-3 s0"
