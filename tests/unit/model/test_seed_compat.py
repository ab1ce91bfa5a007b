"""The published checkpoint's network, against its description written again as plain functions of the state dictionary."""

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from model.config import NetworkConfig
from model.denoiser import build_denoiser
from model.diffusion import build_diffusion
from model.samplers import integrate
from model.sampling import denoiser_of
from model.seed_compat import OBJECTIVE, PUBLISHED, SAMPLING, SeedCompat, TensorsMismatch, check_tensors, size_bytes

SMALL = PUBLISHED.model_copy(update={"image_px": 64, "width": 32, "depth": 2, "heads": 4})
HEADS = 4


def tensors(network: NetworkConfig = SMALL) -> dict[str, Tensor]:
    torch.manual_seed(0)
    return dict(SeedCompat(network).state_dict())


def sinusoid(positions: Tensor, width: int) -> Tensor:
    rows = [
        [math.sin(p / 10_000 ** (i / (width // 2))) for i in range(width // 2)]
        + [math.cos(p / 10_000 ** (i / (width // 2))) for i in range(width // 2)]
        for p in positions.tolist()
    ]
    return torch.tensor(rows)


def attention(p: dict[str, Tensor], h: Tensor) -> Tensor:
    b, n, d = h.shape
    query, key, value = (
        part.reshape(b, n, HEADS, d // HEADS).transpose(1, 2)
        for part in F.linear(h, p["attention.in_proj_weight"], p["attention.in_proj_bias"]).chunk(3, dim=-1)
    )
    mixed = torch.softmax(query @ key.transpose(-1, -2) / math.sqrt(d // HEADS), dim=-1) @ value
    return F.linear(mixed.transpose(1, 2).reshape(b, n, d), p["attention.out_proj.weight"], p["attention.out_proj.bias"])


def linear(p: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    return F.linear(x, p[f"{name}.weight"], p[f"{name}.bias"])


def block(p: dict[str, Tensor], x: Tensor, time: Tensor) -> Tensor:
    for norm, affine, gate in ((1, 1, 2), (2, 3, 4)):
        gamma, beta = linear(p, f"timestep{affine}.2", F.silu(linear(p, f"timestep{affine}.0", time)))[:, None].chunk(2, dim=-1)
        h = F.layer_norm(x, x.shape[-1:], p[f"norm{norm}.weight"], p[f"norm{norm}.bias"], 1e-5) * gamma + beta
        h = attention(p, h) if norm == 1 else linear(p, "pointwise.2", F.silu(linear(p, "pointwise.0", h)))
        x = x + h * F.silu(linear(p, f"timestep{gate}.0", time))[:, None]
    return x


def described(p: dict[str, Tensor], x: Tensor, t: Tensor, depth: int, width: int) -> Tensor:
    """The forward pass as the checkpoint's authors have it."""
    a0 = F.silu(F.conv2d(x, p["d1.upchannels.weight"], p["d1.upchannels.bias"], padding=1))
    skips = [a0]
    for name in ("d2", "d3", "d4"):
        skips.append(F.silu(F.conv2d(skips[-1], p[f"{name}.downsize.weight"], p[f"{name}.downsize.bias"], stride=2, padding=1)))
    a0, a1, a2, a3 = skips
    b, c, height, width_px = a3.shape
    tokens = torch.stack([a3[:, :, r : r + 4, s : s + 4].reshape(b, -1) for r in range(0, height, 4) for s in range(0, width_px, 4)], dim=1)
    h = F.silu(linear(p, "patch.proj", tokens)) + sinusoid(torch.arange(tokens.shape[1]), width)
    time = sinusoid(t, width)
    for i in range(depth):
        h = block({name.removeprefix(f"ditblock.{i}."): v for name, v in p.items() if name.startswith(f"ditblock.{i}.")}, h, time)
    h = F.layer_norm(h, h.shape[-1:], p["linear.layernorm.weight"], p["linear.layernorm.bias"], 1e-5)
    h = F.silu(linear(p, "linear.proj", h))
    z = h.view(b, height // 4, width_px // 4, c, 4, 4).permute(0, 3, 1, 4, 2, 5).reshape(b, c, height, width_px)
    for name, skip in (("u1", a3), ("u3", a2), ("u4", a1)):
        z = F.conv_transpose2d(torch.cat([z, skip], 1), p[f"{name}.upsize.weight"], p[f"{name}.upsize.bias"], stride=2, padding=1)
        z = F.silu(F.conv2d(z, p[f"{name}.downchannels.weight"], p[f"{name}.downchannels.bias"], padding=1))
    return F.silu(F.conv2d(torch.cat([z, a0], 1), p["u2.downchannels.weight"], p["u2.downchannels.bias"], padding=1))


def test_the_published_shape_has_316_tensors_and_184342811_parameters() -> None:
    with torch.device("meta"):
        tensors = SeedCompat(PUBLISHED).state_dict()
    assert len(tensors) == 316
    assert sum(tensor.numel() for tensor in tensors.values()) == 184_342_811
    assert size_bytes() == 4 * 184_342_811
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    assert shapes["d1.upchannels.weight"] == (4, 3, 3, 3)
    assert shapes["patch.proj.weight"] == (768, 64)
    assert shapes["ditblock.11.timestep3.2.weight"] == (1536, 1536)
    assert shapes["ditblock.0.attention.in_proj_weight"] == (2304, 768)
    assert shapes["ditblock.0.pointwise.0.weight"] == (3072, 768)
    assert shapes["linear.proj.weight"] == (64, 768)
    assert shapes["u1.upsize.weight"] == (8, 8, 4, 4)
    assert shapes["u2.downchannels.weight"] == (3, 8, 3, 3)


@pytest.mark.parametrize("training", [True, False])
def test_the_network_computes_what_the_authors_code_computes(training: bool) -> None:
    p = tensors()
    network = build_denoiser(SMALL)
    network.load_state_dict(p)
    network.train(training)
    x, t = torch.randn(3, 3, 64, 64), torch.tensor([0.0, 417.0, 999.0])
    with torch.no_grad():
        actual = network(x, t)
        torch.testing.assert_close(actual, described(p, x, t, SMALL.depth, SMALL.width), rtol=1e-4, atol=1e-5)
    assert network.encode(x, t).shape == (3, 4, 8, 8)
    assert float(actual.min()) >= -0.2785, "SiLU on the image: no pixel is darker than 92"


@pytest.mark.fault
@pytest.mark.slow
def test_its_sampler_is_the_posterior_of_the_predicted_image_over_all_timesteps() -> None:
    """x0-prediction, fixed small variance, nothing clipped, the last step returns the prediction itself."""
    network = build_denoiser(SMALL.model_copy(update={"image_px": 32, "width": 16, "depth": 1}), seed=0).eval()
    begin, noise = torch.randn(2, 3, 32, 32), torch.randn(1000, 2, 3, 32, 32)
    diffusion = build_diffusion(OBJECTIVE)
    with torch.inference_mode():
        denoise = denoiser_of(network, diffusion, clip_x=SAMPLING.clip_x)
        actual = integrate(denoise, diffusion.path, SAMPLING, begin, lambda step: noise[999 - step])
        beta = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
        alpha_bar = (1 - beta).cumprod(0)
        x_t = begin
        for k in reversed(range(1000)):
            x = network(x_t, torch.full((2,), float(k)))
            if k == 0:
                x_t = x
                break
            mean = (alpha_bar[k - 1].sqrt() * beta[k] * x + (1 - beta[k]).sqrt() * (1 - alpha_bar[k - 1]) * x_t) / (1 - alpha_bar[k])
            variance = (1 - alpha_bar[k - 1]) / (1 - alpha_bar[k]) * beta[k]
            x_t = (mean + variance.sqrt() * noise[k]).float()
    torch.testing.assert_close(actual, x_t, rtol=1e-3, atol=1e-4)


def test_the_right_tensors_are_returned_in_order() -> None:
    good = tensors()
    shuffled = dict(reversed(good.items()))
    assert list(check_tensors(shuffled, SMALL)) == list(good)
    assert all(tensor.is_contiguous() for tensor in check_tensors(shuffled, SMALL).values())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p: p.pop("u3.upsize.bias"), r"1 of 76 tensors are missing: u3\.upsize\.bias"),
        (lambda p: p.update({"u9.extra": torch.zeros(1)}), r"1 tensors do not belong to the network: u9\.extra"),
        (
            lambda p: p.update({"patch.proj.bias": torch.zeros(7)}),
            r"patch\.proj\.bias is torch\.float32 \(7,\), expected .* \(32,\)",
        ),
        (lambda p: p.update({"patch.proj.bias": torch.zeros(32).half()}), r"patch\.proj\.bias is torch\.float16"),
        (lambda p: p["linear.proj.bias"].fill_(float("nan")), r"linear\.proj\.bias holds values that are not finite"),
    ],
    ids=["missing", "extra", "shape", "type", "nan"],
)
def test_other_tensors_are_refused_by_name(change: object, message: str) -> None:
    p = {name: tensor.clone() for name, tensor in tensors().items()}
    change(p)  # type: ignore[operator]
    with pytest.raises(TensorsMismatch, match=message):
        check_tensors(p, SMALL)


def test_dropout_is_refused() -> None:
    with pytest.raises(ValueError, match="has no dropout"):
        NetworkConfig.model_validate({**SMALL.model_dump(), "dropout": 0.1})
