"""Drawing from weights with a guide: what reaches the image, and which guides are refused; what a generator imports and keeps."""

import os
import subprocess
import sys

import pytest
import torch
from celebdit_testing.recipes import tiny_network
from torch import Tensor

from model import rng
from model.config import DiffusionConfig, NetworkConfig, SamplingConfig
from model.denoiser import build_denoiser
from model.generator import Generator, Guidance, GuideMismatch

CPU = torch.device("cpu")
ONE_STEP = SamplingConfig(sampler="euler", num_steps=1, ema="none")
"""From pure noise to the estimate of the image and no further."""


def weights_of(network: NetworkConfig, seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    state = build_denoiser(network).state_dict()
    return {name: 0.35 * torch.randn(value.shape, generator=generator) for name, value in state.items()}


def generator_of(seed: int, *, network: NetworkConfig | None = None, **diffusion: object) -> Generator:
    chosen = network or tiny_network()
    return Generator(weights_of(chosen, seed), chosen, DiffusionConfig.model_validate(diffusion), device=CPU)


def estimate(seed: int, network: NetworkConfig, x_t: Tensor) -> Tensor:
    """What the network of `seed` says of pure noise."""
    denoiser = build_denoiser(network)
    denoiser.load_state_dict(weights_of(network, seed))
    with torch.inference_mode():
        return denoiser.eval()(x_t, torch.full((len(x_t),), 1000.0))


@pytest.mark.parametrize("clip_x", [True, False])
def test_an_image_is_moved_away_from_the_guides_and_clipped_once_in_the_end(clip_x: bool) -> None:
    """Karras et al. 2024, equation 3, with a guide of another width; clipping each estimate before would give other images."""
    narrow = tiny_network(width=16)
    noise = rng.normal(0, rng.Stream.SAMPLE, 0, torch.arange(4), (3, 16, 16))
    good, bad = estimate(1, tiny_network(), noise), estimate(2, narrow, noise)
    moved = bad + 2.5 * (good - bad)
    early = bad.clamp(-1, 1) + 2.5 * (good.clamp(-1, 1) - bad.clamp(-1, 1))
    expected = ((moved.clamp(-1, 1) + 1) * 127.5).round()
    assert float((expected - ((early.clamp(-1, 1) + 1) * 127.5).round()).abs().max()) > 10, "the estimates reach beyond [-1, 1]"
    guidance = Guidance(generator_of(2, network=narrow), 2.5)
    drawn = generator_of(1).draw(ONE_STEP.model_copy(update={"clip_x": clip_x}), range(4), guidance=guidance, pass_images=4)
    assert float((drawn.float() - expected).abs().max()) <= 1


def test_a_guide_outside_its_interval_changes_no_byte() -> None:
    generator, guide = generator_of(1), generator_of(2)
    sampling = SamplingConfig(sampler="heun", num_steps=3, ema="none")
    alone = generator.draw(sampling, range(3), pass_images=3)
    for guidance in (Guidance(guide, 1.0), Guidance(guide, 3.0, t_low=0.4, t_high=0.6)):
        assert torch.equal(generator.draw(sampling, range(3), guidance=guidance, pass_images=3), alone)
    samples = generator.draw(sampling, range(3), guidance=Guidance(guide, 3.0, t_low=0.6, t_high=0.7), pass_images=3)
    assert not torch.equal(samples, alone)


def test_guided_images_do_not_depend_on_how_many_are_drawn_at_once() -> None:
    generator, guidance = generator_of(1), Guidance(generator_of(2), 1.5)
    sampling = SamplingConfig(sampler="euler", num_steps=3, ema="none")
    together = generator.draw(sampling, range(5), guidance=guidance)
    alone = torch.cat([generator.draw(sampling, [i], guidance=guidance) for i in range(5)])
    assert int((together.int() - alone.int()).abs().max()) <= 1


def test_a_guide_may_predict_something_else() -> None:
    """Its output is read in its own terms: as an image the same weights say the same and nothing moves, as a velocity they do not."""
    image, velocity = (generator_of(1, prediction=prediction) for prediction in ("x", "v"))
    drawn = [
        image.draw(ONE_STEP, range(2), guidance=guidance, pass_images=2)
        for guidance in (Guidance(velocity, 1.0), Guidance(velocity, 2.0), Guidance(generator_of(1), 2.0))
    ]
    assert torch.equal(drawn[2], drawn[0]), "the same weights, the same prediction"
    assert not torch.equal(drawn[1], drawn[0]), "the same weights, read as a velocity"


@pytest.mark.parametrize(
    ("guide", "message"),
    [
        ({"network": tiny_network(image_px=32)}, "the guide has image_px 32, the model that it guides has 16"),
        ({"path": "vp_linear"}, "the guide has path 'vp_linear', the model that it guides has 'rectified_flow'"),
    ],
)
def test_a_guide_of_another_size_or_path_is_refused(guide: dict[str, object], message: str) -> None:
    with pytest.raises(GuideMismatch, match=message):
        generator_of(1).draw(ONE_STEP, range(2), guidance=Guidance(generator_of(2, **guide), 2.0), pass_images=2)  # type: ignore[arg-type]


DRAW = """
import sys
import torch
from celebdit_testing.recipes import tiny_network
from model.config import DiffusionConfig, SamplingConfig
from model.denoiser import build_denoiser
from model.generator import Generator

for settings in {}, {"linear_path": True, "local_share": True}, {"res_norm": "layer"}, {"block": "dit"}:
    network = tiny_network(**settings)
    generator = Generator(build_denoiser(network).state_dict(), network, DiffusionConfig(), device=torch.device("cpu"))
    generator.draw(SamplingConfig(num_steps=1, ema="none"), [0], pass_images=1)
    imported = {"sympy", "torch._dynamo", "torch._inductor"} & set(sys.modules)
    assert not imported, (settings, imported)
"""


def test_a_generator_that_is_not_compiled_imports_no_compiler() -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", DRAW], check=True, timeout=120, env=environment)


def test_a_generator_keeps_copies_of_its_weights() -> None:
    network = tiny_network()
    weights = weights_of(network, 1)
    generator = Generator(weights, network, DiffusionConfig(), device=CPU)
    before = generator.draw(ONE_STEP, range(2), pass_images=2)
    for tensor in weights.values():
        tensor.zero_()
    assert torch.equal(generator.draw(ONE_STEP, range(2), pass_images=2), before)
