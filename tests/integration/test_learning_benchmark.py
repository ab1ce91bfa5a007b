"""The learning benchmark runs whole at toy size, and its intervals are those of Student's t."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from celebdit_testing.recipes import tiny_pack

from benchmarks import autoguidance
from benchmarks.contenders import CONTENDERS, PlainDiT, Training, recipe_of
from benchmarks.learning import learn, summary_of
from benchmarks.learning_run import Size
from benchmarks.learning_scores import Scorer, energy_inside_patches, seams
from benchmarks.patch_distance import patch_distances
from components.ingest.sources.synthetic import draw_face
from model.config import SamplingConfig
from model.denoiser import num_parameters


@pytest.mark.fault
@pytest.mark.slow
def test_it_runs_whole_at_toy_size(tmp_path: Path) -> None:
    out = tmp_path / "learning.json"
    size = Size(side_px=32, batch_images=4, budget_s=0.1, faces=24, samples=16, sampler="euler", sampler_steps=1, steps={"celebdit": 3})
    report = learn(size, ["celebdit", "plain-dit-ddpm"], [0, 1], out, sampler_table=False)
    assert report["training_faces"] is None
    assert json.loads(out.read_text()) == report
    assert report["steps"]["celebdit"] == 3
    assert {run["steps"] for run in report["runs"] if run["contender"] == "celebdit"} == {3}
    assert [(run["contender"], run["seed"]) for run in report["runs"]] == [
        ("celebdit", 0),
        ("plain-dit-ddpm", 0),
        ("celebdit", 1),
        ("plain-dit-ddpm", 1),
    ]
    assert all(run["distance"] > report["real"]["distance"] for run in report["runs"])
    assert all(len(run["held_out_errors"]) == 5 and min(run["held_out_errors"]) > 0 for run in report["runs"])
    assert out.with_suffix(".png").stat().st_size > 0


def test_a_contender_changes_the_recipe_as_it_says() -> None:
    recipes = [
        recipe_of(CONTENDERS[name], side_px=32, batch_images=4, seed=0, steps=40) for name in ("local-share-tenth", "local-share-half-rate")
    ]
    assert [recipe.optimizer.lr_peak for recipe in recipes] == [2e-3, 1e-3]
    assert recipes[0].model_copy(update={"optimizer": recipes[1].optimizer}) == recipes[1]


@pytest.mark.fault
@pytest.mark.slow
def test_guided_samples_are_scored_for_each_weight(tmp_path: Path) -> None:
    out = tmp_path / "autoguidance.json"
    rows = autoguidance.measure_guidance(autoguidance.Size(steps=16, batch_images=4, faces=24, samples=16, sampler_steps=2), [0], out)
    assert json.loads(out.read_text()) == rows
    assert [row.get("weight") for row in rows] == [1.0, 1.1, 1.25, 1.5, None]
    assert rows[-1]["guide_alone"]
    distances = [row["distance"] for row in rows]
    assert len(set(distances)) == len(distances), "each weight draws other images"


def test_a_guide_with_weight_one_changes_no_sample(tmp_path: Path) -> None:
    pack = tiny_pack(tmp_path, image_px=32)
    model, weak = (
        Training(name, pack, side_px=32, batch_images=4, seed=0, steps=4) for name in ("celebdit-local-share-tenth", "small-guide")
    )
    for training in (model, weak):
        training.step()
    sampling = SamplingConfig(sampler="euler", num_steps=2, seed=0)
    alone, same, other = (
        model.sample(4, sampling, **kwargs) for kwargs in ({}, {"guide": weak, "weight": 1.0}, {"guide": weak, "weight": 2.0})
    )
    assert np.array_equal(alone, same)
    assert not np.array_equal(alone, other)


@pytest.mark.fault
@pytest.mark.slow
def test_samples_are_compared_with_faces_that_no_training_sees(tmp_path: Path) -> None:
    size = Size(32, 4, 0.1, faces=24, samples=16, sampler="euler", sampler_steps=1, other_faces=40)
    report = learn(size, ["augmented"], [0], tmp_path / "learning.json", sampler_table=False)
    assert report["training_faces"]["distance"] > 1.1 * report["real"]["distance"], "other faces, mirrored, are nearer to themselves"
    (run,) = report["runs"]
    assert len(run["training_errors"]) == len(run["held_out_errors"])
    assert run["training_errors"] != run["held_out_errors"]


def test_the_interval_over_three_seeds_is_students() -> None:
    runs = [{"contender": "a", "seed": seed, **dict.fromkeys(Scorer.KEYS, float(value))} for seed, value in enumerate((1, 2, 3))]
    assert summary_of(runs)["a"]["distance"] == [2.0, pytest.approx(4.303 / 3**0.5, abs=1e-3)]


def test_a_mosaic_of_patches_has_seams_and_no_energy_inside_them() -> None:
    images = np.random.default_rng(0).integers(0, 256, (64, 64, 64, 3), dtype=np.uint8)
    inside = energy_inside_patches(images)
    variance = float((images / 127.5).var())
    assert inside == pytest.approx(variance * np.array([3 / 4, 3 / 16, 3 / 64]), rel=0.05), "of white noise, by averaging four at a time"
    assert seams(images) == pytest.approx(1, rel=0.05)
    mosaic = images[:, ::8, ::8].repeat(8, axis=1).repeat(8, axis=2)
    assert energy_inside_patches(mosaic) == pytest.approx(np.zeros(3), abs=1e-9)
    assert seams(mosaic) > 1000


def test_the_distance_between_patches_sees_mosaics_and_little_of_blur() -> None:
    faces, others = (np.stack([np.asarray(draw_face(0, index, 32)) for index in range(first, first + 32)]) for first in (0, 32))
    real, mosaic, blurred = (patch_distances(images, faces) for images in (others, averaged(others, 8), averaged(others, 2)))
    assert list(real) == [32, 16]
    assert mosaic[32] > 4 * real[32]
    assert mosaic[32] > 2 * blurred[32] > 2 * real[32]
    assert blurred[16] < 2 * real[16]
    assert patch_distances((others // 2 + 64).astype(np.uint8), faces) == pytest.approx(real, rel=0.2), "contrast is normalised"


def averaged(images: np.ndarray, square_px: int) -> np.ndarray:
    """Return the images with the mean of each square in place of its pixels."""
    squares = images.reshape(len(images), 32 // square_px, square_px, 32 // square_px, square_px, 3)
    return np.broadcast_to(squares.mean((2, 4), keepdims=True), squares.shape).reshape(images.shape).astype(np.uint8)


def test_the_distance_between_patches_is_refused_for_a_side_that_has_no_pyramid() -> None:
    for side in (8, 48):
        images = np.zeros((2, side, side, 3), dtype=np.uint8)
        with pytest.raises(ValueError, match=rf"a side of {side} px is not 16 times a power of two"):
            patch_distances(images, images)


def test_held_out_errors_of_an_untrained_network_are_those_of_an_empty_image(tmp_path: Path) -> None:
    """Its output is zero, so the error is the energy of the faces, whatever the time and the noise."""
    training = Training("celebdit", tiny_pack(tmp_path, image_px=32), side_px=32, batch_images=4, seed=0, steps=4)
    faces = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
    energy = float(((faces / 127.5 - 1) ** 2).mean())
    assert training.errors(faces, (0.05, 0.95)) == pytest.approx([energy, energy], abs=1e-4)


@pytest.mark.parametrize("side_px", [32, 64])
def test_the_plain_transformer_is_of_the_size_of_the_demo_and_has_no_convolutions(side_px: int) -> None:
    ours, plain = CONTENDERS["celebdit"], CONTENDERS["plain-dit"]
    network = recipe_of(plain, side_px=side_px, batch_images=4, seed=0, steps=40).network
    one, other = ours.build(network), plain.build(network)
    assert isinstance(other, PlainDiT)
    assert not any(isinstance(module, torch.nn.Conv2d) for module in other.modules())
    assert num_parameters(other) == pytest.approx(num_parameters(one), rel=0.1)
    assert other(torch.zeros(2, 3, side_px, side_px), torch.zeros(2)).shape == (2, 3, side_px, side_px)
