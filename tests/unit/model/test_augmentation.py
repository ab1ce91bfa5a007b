"""Augmentation: each transformation beside scipy's, what the network gets of it, and what the layer for it leaves as it was."""

import copy
import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from celebdit_testing.memory import LocalSink, MemoryRecorder
from celebdit_testing.recipes import tiny_network, tiny_pack, tiny_recipe
from celebdit_testing.shaken import shaken
from pydantic import ValidationError
from scipy import ndimage
from torch import Tensor, nn

from model.augmentation import NUM_PARAMETERS, Augmentation, Transformation
from model.config import NetworkConfig
from model.denoiser import build_denoiser
from model.diffusion import build_diffusion
from model.distributed import World
from model.generator import Generator
from model.half_weights import halve_weights
from model.interfaces import Outputs
from model.noised_batch import BatchNoise, step_tensor
from model.trainer import Placement, Trainer

CPU = torch.device("cpu")
SIDE = 32
KINDS = ("scale", "angle", "stretch", "shift")
NONE: Mapping[str, object] = {"flip": False, "scale": 0.0, "angle": 0.0, "stretch": 0.0, "axis": 0.0, "shift": (0.0, 0.0)}


def transformation(**changes: object) -> Transformation:
    values = {**NONE, **changes}
    return Transformation(**{n: torch.tensor([v], dtype=torch.bool if n == "flip" else torch.float64) for n, v in values.items()})


def smooth_image() -> Tensor:
    """An image without symmetry, smooth enough that two ways to interpolate it agree."""
    y, x = np.mgrid[:SIDE, :SIDE] / SIDE
    blob = np.exp(-((x - 0.3) ** 2 + (y - 0.6) ** 2) / 0.03)
    planes = [np.sin(2 * math.pi * (x + 0.3 * y)), x * np.cos(2 * math.pi * y), blob]
    return torch.from_numpy(0.9 * np.stack(planes).astype(np.float32))[None]


def by_matrix(image: np.ndarray, forward: np.ndarray, shift: tuple[float, float] = (0.0, 0.0)) -> np.ndarray:
    """Map the image around its centre by a matrix of (right, down), then move it by `shift` sides; the inverse is numpy's."""
    inverse = np.linalg.inv(forward)[::-1, ::-1]  # scipy counts (row, column)
    centre = np.full(2, (SIDE - 1) / 2)
    offset = centre - inverse @ (centre + SIDE * np.array(shift[::-1]))
    return np.stack([ndimage.affine_transform(plane, inverse, offset=offset, order=3, mode="reflect") for plane in image])


def rotation(angle: float) -> np.ndarray:
    return np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])


def stretching(octaves: float, axis: float) -> np.ndarray:
    return rotation(axis) @ np.diag([2.0**octaves, 2.0**-octaves]) @ rotation(-axis)


def rotated(image: np.ndarray, angle: float) -> np.ndarray:
    """By scipy's own function, which counts degrees against the clock."""
    return np.stack([ndimage.rotate(plane, -math.degrees(angle), reshape=False, order=3, mode="reflect") for plane in image])


def moved(image: np.ndarray, right: float, down: float) -> np.ndarray:
    return np.stack([ndimage.shift(plane, (SIDE * down, SIDE * right), order=3, mode="reflect") for plane in image])


IMAGE = smooth_image()
PLANES = IMAGE[0].numpy()
ALL = {"flip": True, "scale": -0.2, "angle": 2.0, "stretch": 0.25, "axis": 0.7, "shift": (0.1, -0.2)}
CASES = [
    ({"scale": 0.3}, by_matrix(PLANES, 2**0.3 * np.eye(2))),
    ({"scale": -0.4}, by_matrix(PLANES, 2**-0.4 * np.eye(2))),
    ({"angle": 0.4}, rotated(PLANES, 0.4)),
    ({"angle": -2.5}, rotated(PLANES, -2.5)),
    ({"stretch": 0.25}, by_matrix(PLANES, np.diag([2**0.25, 2**-0.25]))),
    ({"stretch": -0.25, "axis": 0.7}, by_matrix(PLANES, stretching(-0.25, 0.7))),
    ({"shift": (0.1, -0.2)}, moved(PLANES, 0.1, -0.2)),
    (ALL, by_matrix(PLANES[:, ::-1], stretching(0.25, 0.7) @ rotation(2.0) * 2**-0.2, (0.1, -0.2))),
]


@pytest.mark.parametrize(("changes", "expected"), CASES, ids=[str(changes) for changes, _ in CASES])
def test_a_transformation_is_that_of_scipy_up_to_interpolation(changes: dict[str, object], expected: np.ndarray) -> None:
    difference = np.abs(transformation(**changes).apply(IMAGE)[0].numpy() - expected)
    assert difference.max() < 0.03 < 0.1 * np.abs(PLANES - expected).max()
    assert difference.mean() < 0.004


def test_without_transformation_and_upside_down_pixels_keep_their_bits() -> None:
    side_px = 40  # with a power of two the centres of pixels are exact, and resampling would keep the bits too
    images = torch.rand(64, 3, side_px, side_px) * 2 - 1
    drawn = Augmentation(3, 0.2).draw(torch.arange(64), 5)
    transformed = drawn.apply(images)
    kept, flipped = ~drawn.is_resampled & ~drawn.flip, ~drawn.is_resampled & drawn.flip
    assert kept.sum() > 8
    assert flipped.sum() > 0
    assert torch.equal(transformed[kept], images[kept])
    assert torch.equal(transformed[flipped], images[flipped].flip(-2))
    assert torch.equal(drawn.parameters.eq(0).all(1), kept), "the parameters are zero where nothing was changed, and only there"
    assert not transformed[drawn.is_resampled].isclose(images[drawn.is_resampled]).flatten(1).all(1).any()
    assert transformed.abs().max() <= 1


def test_each_kind_is_drawn_with_the_probability_and_independently() -> None:
    count, p = 100_000, 0.15
    drawn = Augmentation(1, p).draw(torch.arange(count), 2)
    changed = {"flip": drawn.flip, **{kind: getattr(drawn, kind).reshape(count, -1).ne(0).any(1) for kind in KINDS}}
    shares = {kind: float(where.double().mean()) for kind, where in changed.items()}
    assert shares == pytest.approx({"flip": p / 2, **dict.fromkeys(KINDS, p)}, abs=5 * math.sqrt(p / count))
    together = torch.stack(list(changed.values())).double()
    assert (torch.corrcoef(together) - torch.eye(len(changed))).abs().max() < 5 / math.sqrt(count)
    for kind, deviation in (("scale", 0.2), ("stretch", 0.2), ("shift", 0.125), ("angle", math.pi / math.sqrt(3))):
        values = getattr(drawn, kind)[changed[kind]]
        assert float(values.std()) == pytest.approx(deviation, rel=0.03), kind
        assert abs(float(values.mean())) < 0.03 * math.pi
    turned = drawn.axis[changed["stretch"]]
    assert float(turned.ne(0).double().mean()) == pytest.approx(0.5, abs=0.03)
    assert 1.5 < float(turned.abs().max()) < math.pi / 2


def from_parameters(parameters: Tensor) -> Transformation:
    """Read what the paper's numbers say, without the code that wrote them."""
    flip, scale, cosine, sine, along, across, right, down = parameters.double().unbind(1)
    axis = torch.where(along != 0, torch.atan(across / along), 0.0)
    stretch = 0.2 * torch.hypot(along, across) * along.sign()
    return Transformation(flip.bool(), 0.2 * scale, torch.atan2(sine, cosine + 1), stretch, axis, 0.125 * torch.stack((right, down), dim=1))


def test_the_network_gets_the_parameters_of_what_its_images_went_through() -> None:
    images, ids = (IMAGE.expand(24, -1, -1, -1) * 127.5 + 127.5).round().to(torch.uint8), torch.arange(100, 124)
    batch = BatchNoise(build_diffusion(tiny_recipe().diffusion), 7, horizontal_flip=False, augmentation=0.4)(
        images, ids, step_tensor(9, CPU)
    )
    assert batch.augmentation is not None
    assert batch.augmentation.shape == (24, NUM_PARAMETERS)
    assert batch.augmentation.ne(0).any(0).all(), "each of the numbers is used"
    torch.testing.assert_close(batch.x, from_parameters(batch.augmentation).apply(images / 127.5 - 1), rtol=0, atol=1e-4)
    plain = BatchNoise(build_diffusion(tiny_recipe().diffusion), 7, horizontal_flip=False)(images, ids, step_tensor(9, CPU))
    assert torch.equal(batch.noise, plain.noise)
    assert torch.equal(batch.t, plain.t)
    t = batch.t.float()[:, None, None, None]
    torch.testing.assert_close(batch.x_t, (1 - t) * batch.x + t * batch.noise)
    assert [len(one.inputs) for one in (plain, batch)] == [2, 3]


def test_what_an_image_goes_through_depends_on_its_position_and_step_alone() -> None:
    together = Augmentation(3, 0.5).draw(torch.arange(12), 4).parameters
    assert torch.equal(Augmentation(3, 0.5).draw(torch.tensor([7, 2]), 4).parameters, together[[7, 2]])
    for other in (Augmentation(4, 0.5).draw(torch.arange(12), 4), Augmentation(3, 0.5).draw(torch.arange(12), 5)):
        assert not torch.equal(other.parameters, together)


# The network


def networks(**changes: object) -> tuple[nn.Module, nn.Module]:
    """A network that takes parameters and one that does not, with the same other weights, none of them zero."""
    with_it = shaken(build_denoiser(tiny_network(augmentation=0.1, **changes), seed=0))
    without = build_denoiser(tiny_network(**changes))
    without.load_state_dict({name: tensor for name, tensor in with_it.state_dict().items() if not name.startswith("augmentation.")})
    return with_it, without


INPUTS = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(3)), torch.tensor([10.0, 800.0])


@pytest.mark.parametrize("changes", [{}, {"linear_path": True, "local_share": True}, {"block": "dit"}], ids=str)
def test_without_parameters_and_with_zeros_it_is_the_network_without_the_layer(changes: dict[str, object]) -> None:
    with_it, without = networks(**changes)
    expected = without(*INPUTS)
    assert torch.equal(with_it(*INPUTS), expected)
    assert torch.equal(with_it(*INPUTS, torch.zeros(2, NUM_PARAMETERS)), expected)
    assert not torch.isclose(with_it(*INPUTS, torch.ones(2, NUM_PARAMETERS)), expected).all()


def test_the_layer_starts_at_zero_and_leaves_the_initial_weights_of_the_rest_alone() -> None:
    without, with_it = (build_denoiser(tiny_network(augmentation=p, linear_path=True), seed=1).state_dict() for p in (0.0, 0.1))
    assert {name: tensor.abs().sum() for name, tensor in with_it.items() if name not in without} == {"augmentation.linear.weight": 0}
    assert all(torch.equal(tensor, with_it[name]) for name, tensor in without.items())


def test_the_layer_has_a_gradient_in_every_step_and_learns_from_transformed_images() -> None:
    """DistributedDataParallel waits for the gradient of every parameter."""
    for parameters, learns in ((torch.zeros(2, NUM_PARAMETERS), False), (torch.ones(2, NUM_PARAMETERS), True)):
        with_it, _ = networks()
        with_it(*INPUTS, parameters).square().sum().backward()
        gradient = with_it.augmentation.linear.weight.grad
        assert gradient is not None
        assert bool(gradient.ne(0).all()) is learns


def test_samples_are_those_of_the_network_without_the_layer() -> None:
    with_it, without = networks()
    sampling = tiny_recipe().sampling
    images = [
        Generator(network.state_dict(), network.config, tiny_recipe().diffusion, device=CPU).draw(sampling, range(2), pass_images=2)
        for network in (with_it, without)
    ]
    assert torch.equal(*images)


def test_weights_in_bfloat16_condition_as_autocast_does() -> None:
    with_it, _ = networks()
    halved = copy.deepcopy(with_it)
    halve_weights(halved)
    parameters = Augmentation(0, 1.0).draw(torch.arange(2), 0).parameters
    with torch.backends.mkldnn.flags(enabled=False), torch.autocast("cpu", torch.bfloat16), torch.inference_mode():
        assert torch.equal(halved(*INPUTS, parameters), with_it(*INPUTS, parameters))


def test_a_training_conditions_on_what_its_images_went_through(tmp_path: Path) -> None:
    recipe = tiny_recipe(network={"augmentation": 0.9}, total_steps=6)
    trainer = Trainer(recipe, tiny_pack(tmp_path / "pack"), Placement(World(), CPU), Outputs(MemoryRecorder(), LocalSink(tmp_path)))
    trainer.run()
    assert trainer.network.augmentation.linear.weight.ne(0).any(0).all()


# The setting


def test_the_setting_is_stored_by_name_only_where_it_is_on_and_is_part_of_the_run() -> None:
    assert "augmentation" not in tiny_network().model_dump(mode="json")
    stored = tiny_network(augmentation=0.12).model_dump(mode="json")
    assert NetworkConfig.model_validate(stored, strict=False).augmentation == 0.12
    off, on = (tiny_recipe(network={"augmentation": p}).identity("d" * 64) for p in (0.0, 0.12))
    assert off == tiny_recipe().identity("d" * 64)
    assert on != off


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"augmentation": 1.1}, "less than or equal to 1"),
        ({"augmentation": -0.1}, "greater than or equal to 0"),
        (
            {"augmentation": 0.1, "codec": "seed_compat", "channels": (), "res_blocks": (), "block": "dit"},
            "'seed_compat' takes no parameters",
        ),
    ],
)
def test_what_no_network_can_have_is_refused(changes: Mapping[str, object], problem: str) -> None:
    with pytest.raises(ValidationError, match=problem):
        tiny_network(**changes)
