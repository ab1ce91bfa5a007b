"""The network: what it promises of shapes, starts and sizes, and parity of its parts with the papers, written again here."""

import math

import numpy as np
import pytest
import torch
from celebdit_testing.recipes import tiny_network
from celebdit_testing.shaken import shaken
from hypothesis import given, settings
from hypothesis import strategies as st

from model.config import NetworkConfig
from model.denoiser import Denoiser, build_denoiser, num_parameters
from model.dit import Block, Core
from model.flops import flops_of
from model.layers import TimeEmbedding, patchify, rotary_angles, rotate, sincos_positions, sinusoid, unpatchify
from model.residual_blocks import LeanBlock, PositionNorm, ResidualBlock
from pipeline.config import load_config

TINY_PLAIN = {"image_px": 16, "codec": "plain", "channels": (), "res_blocks": (), "latent_channels": 4, "patch_px": 2}
VARIANTS = [
    {},
    {"block": "dit"},
    {"stem_px": 4, "patch_px": 1},
    {**TINY_PLAIN, "block": "dit"},
    {"channels": (8, 12, 16), "res_blocks": (2, 1, 1)},
    {"linear_path": True},
    {**TINY_PLAIN, "patch_px": 1, "linear_path": True},
    {"res_norm": "layer"},
    {"res_norm": "layer", "linear_path": True, "block": "dit"},
    {"group_channels": 4, "codec_dropout": 0.1},
    {"linear_output": True},
    {"linear_output": True, "linear_path": True, "local_share": True, "res_norm": "layer"},
    {"linear_path": True, "local_share": True, "stem_px": 4, "patch_px": 1},
]


def network_of(**changes: object) -> NetworkConfig:
    config = {**tiny_network().model_dump(), **changes}
    config["image_px"] = 32 if len(config["channels"]) == 3 else 16  # type: ignore[arg-type]
    return NetworkConfig(**config)


# The table of the design: parameters in millions, GFLOP per image and forward pass, at the given side.
SIZES = [
    ("demo", 64, 1.80, 0.30),
    ("celebahq256-s", 256, 35.8, 26.7),
    ("celebahq256-b", 256, 139.4, 99.0),
    ("celebahq256-l", 256, 477.6, 258.9),
    ("celebahq256-xl", 256, 711.4, 363.4),
]


@pytest.mark.parametrize(("preset", "side_px", "parameters_m", "gflop"), SIZES)
def test_each_preset_has_the_parameters_and_the_work_of_its_design(preset: str, side_px: int, parameters_m: float, gflop: float) -> None:
    config = load_config(preset).network
    with torch.device("meta"):
        network = build_denoiser(config)
    assert num_parameters(network) / 1e6 == pytest.approx(parameters_m, rel=0.02)
    assert flops_of(network, side_px) / 1e9 == pytest.approx(gflop, rel=0.02)


@pytest.mark.parametrize("preset", ["seed", "celebahq256-s", "celebahq256-b", "celebahq256-l", "celebahq256-xl"])
def test_at_256_pixels_the_latent_is_32_wide(preset: str) -> None:
    config = load_config(preset).network
    with torch.device("meta"):
        network = build_denoiser(config)
        images, times = torch.empty(2, 3, 256, 256), torch.empty(2)
        assert network.encode(images, times).shape == (2, config.latent_channels, 32, 32)
        assert network(images, times).shape == (2, 3, 256, 256)
    if preset == "seed":
        assert config.latent_channels == 4


@pytest.mark.parametrize("changes", VARIANTS, ids=str)
def test_the_output_is_exactly_zero_at_the_start(changes: dict[str, object]) -> None:
    config = network_of(**changes)
    network = build_denoiser(config, seed=1)
    output = network(torch.randn(2, 3, config.image_px, config.image_px), torch.tensor([0.0, 1000.0]))
    assert torch.equal(output, torch.zeros_like(output))


def test_the_linear_path_alone_is_a_plain_transformer() -> None:
    config = tiny_network(linear_path=True)
    network = shaken(build_denoiser(config, seed=1))
    stride_px = config.total_stride_px
    plain = Core(config.model_copy(update={"latent_channels": 3, "patch_px": stride_px}))
    with torch.no_grad():
        for layer in (network.core.embed, network.decoder.out, network.linear_path.share.linear):
            layer.weight.zero_()
            layer.bias.zero_()
    ends = {f"{end}.{kind}": network.state_dict()[f"linear_path.{end}.{kind}"] for end in ("embed", "out") for kind in ("weight", "bias")}
    plain.load_state_dict({**network.core.state_dict(), **ends})
    images, times = torch.randn(2, 3, 16, 16), torch.tensor([100.0, 900.0])
    output = network(images, times)
    assert output.abs().max() > 0.1
    torch.testing.assert_close(output, plain(images, network.time(times)))


def test_a_last_norm_in_groups_of_one_channel_removes_brightness_and_contrast_of_each_channel() -> None:
    """With 32 channels its groups have one channel each. What is removed can only reach the image along the linear path."""
    network = shaken(build_denoiser(load_config("demo").network.model_copy(update={"linear_output": False})))
    decoded = torch.randn(2, 32, 16, 16)
    changed = 3 * decoded + torch.randn(2, 32, 1, 1)
    torch.testing.assert_close(network.decoder.out_norm(changed), network.decoder.out_norm(decoded), rtol=1e-4, atol=1e-4)


def test_the_linear_path_leaves_the_initial_weights_of_the_rest_and_stored_settings_alone() -> None:
    without, with_path = (build_denoiser(tiny_network(linear_path=on), seed=1).state_dict() for on in (False, True))
    assert {name.split(".")[0] for name in with_path if name not in without} == {"linear_path"}
    assert all(torch.equal(weights, with_path[name]) for name, weights in without.items())
    assert "linear_path" not in tiny_network().model_dump(mode="json")
    stored = tiny_network(linear_path=True).model_dump(mode="json")
    assert NetworkConfig.model_validate(stored, strict=False).linear_path


def test_the_layer_norm_of_a_codec_is_that_of_its_definition_at_each_position() -> None:
    x = 3 * torch.randn(2, 32, 8, 4) + torch.randn(2, 32, 1, 1)
    values = x.numpy()
    expected = (values - values.mean(1, keepdims=True)) / np.sqrt(values.var(1, keepdims=True) + 1e-6)
    np.testing.assert_allclose(PositionNorm()(x), expected, atol=1e-5)


@pytest.mark.parametrize(("norm", "keeps"), [("group", False), ("layer", True)])
def test_a_layer_norm_before_the_output_keeps_what_differs_between_images(norm: str, keeps: bool) -> None:
    """Two images whose decoded channels differ by a constant each are one image after groups of one channel."""
    network = build_denoiser(load_config("demo").network.model_copy(update={"res_norm": norm, "linear_output": False}))
    decoded = torch.randn(1, 32, 16, 16)
    differing = network.decoder.out_norm(decoded + torch.randn(1, 32, 1, 1)) - network.decoder.out_norm(decoded)
    assert (float(differing.abs().max()) > 0.1) == keeps


def test_a_codec_with_layer_norms_has_no_group_norm_and_is_stored_by_name_only_where_it_is_chosen() -> None:
    config = tiny_network(res_norm="layer")
    assert not any(isinstance(module, torch.nn.GroupNorm) for module in build_denoiser(config).modules())
    assert "res_norm" not in tiny_network().model_dump(mode="json")
    assert NetworkConfig.model_validate(config.model_dump(mode="json"), strict=False) == config


@pytest.mark.parametrize("modern", [True, False])
def test_a_block_is_the_identity_at_the_start_and_not_after(modern: bool) -> None:
    block = Block(32, 2, modern=modern, dropout=0.0)
    tokens, time = torch.randn(2, 9, 32), torch.randn(2, 32)
    rotation = (torch.ones(9, 8), torch.zeros(9, 8)) if modern else None
    assert torch.equal(block(tokens, time, rotation), tokens)
    assert not torch.allclose(shaken(block)(tokens, time, rotation), tokens, atol=1e-3)


@pytest.mark.parametrize("changes", VARIANTS, ids=str)
def test_only_the_last_layer_hides_the_rest_at_the_start(changes: dict[str, object]) -> None:
    """The first step moves the last layer, and from the second on every parameter has a gradient."""
    config = network_of(**changes)
    network = shaken(build_denoiser(config, seed=1))
    network(torch.randn(2, 3, config.image_px, config.image_px), torch.tensor([100.0, 900.0])).square().mean().backward()
    without = [name for name, parameter in network.named_parameters() if parameter.grad is None or not parameter.grad.abs().sum() > 0]
    assert without == []


@settings(max_examples=10, deadline=None)
@given(rows=st.integers(1, 4), columns=st.integers(1, 4), batch=st.integers(1, 3), variant=st.sampled_from(VARIANTS))
def test_any_multiple_of_the_stride_keeps_its_shape(rows: int, columns: int, batch: int, variant: dict[str, object]) -> None:
    config = network_of(**variant)
    stride = config.total_stride_px
    with torch.device("meta"):
        network = build_denoiser(config)
        images = torch.empty(batch, 3, rows * stride, columns * stride)
        assert network(images, torch.empty(batch)).shape == images.shape
        latent = network.encode(images, torch.empty(batch))
    assert latent.shape == (
        batch,
        config.latent_channels,
        rows * stride // config.latent_stride_px,
        columns * stride // config.latent_stride_px,
    )


@pytest.mark.parametrize("sides", [(16, 12), (15, 16), (4, 16)])
def test_another_side_is_refused_with_the_stride(sides: tuple[int, int]) -> None:
    network = build_denoiser(tiny_network())
    for call in (network, network.encode):
        with pytest.raises(ValueError, match=rf"image sides {sides[0]}x{sides[1]} must be multiples of 8"):
            call(torch.zeros(1, 3, *sides), torch.zeros(1))


def test_an_image_does_not_depend_on_the_others_in_its_batch() -> None:
    network = shaken(build_denoiser(tiny_network(), seed=0))
    images, times = torch.randn(4, 3, 16, 16), torch.tensor([1.0, 300.0, 600.0, 1000.0])
    together = network(images, times)
    alone = torch.cat([network(images[i : i + 1], times[i : i + 1]) for i in range(4)])
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-5)


# Peebles & Xie 2023, written again in numpy


def layer_norm(x: np.ndarray) -> np.ndarray:
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)


def silu(x: np.ndarray) -> np.ndarray:
    return x / (1 + np.exp(-x))


def gelu_tanh(x: np.ndarray) -> np.ndarray:
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def dit_block(x: np.ndarray, c: np.ndarray, p: dict[str, np.ndarray], heads: int) -> np.ndarray:
    """The adaLN-Zero block of section 3.2 and figure 3, one token and one head at a time."""
    b, n, d = x.shape
    per_head = d // heads
    modulation = silu(c) @ p["modulation.linear.weight"].T + p["modulation.linear.bias"]
    shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = np.split(modulation[:, None, :], 6, axis=-1)
    h = layer_norm(x) * (1 + scale_a) + shift_a
    qkv = h @ p["attention.qkv.weight"].T + p["attention.qkv.bias"]
    mixed = np.zeros_like(x)
    for i in range(b):
        for head in range(heads):
            columns = slice(head * per_head, (head + 1) * per_head)
            q, k, v = (qkv[i, :, part * d : (part + 1) * d][:, columns] for part in range(3))
            for token in range(n):
                scores = k @ q[token] / math.sqrt(per_head)
                weights = np.exp(scores - scores.max())
                mixed[i, token, columns] = weights / weights.sum() @ v
    x = x + gate_a * (mixed @ p["attention.out.weight"].T + p["attention.out.bias"])
    h = layer_norm(x) * (1 + scale_m) + shift_m
    hidden_layer = gelu_tanh(h @ p["mlp.hidden.weight"].T + p["mlp.hidden.bias"])
    return x + gate_m * (hidden_layer @ p["mlp.out.weight"].T + p["mlp.out.bias"])


def test_the_dit_block_is_the_one_of_the_paper() -> None:
    width, heads = 24, 3
    block = shaken(Block(width, heads, modern=False, dropout=0.0).double(), scale=0.3)
    rng = np.random.default_rng(0)
    x, c = rng.normal(size=(2, 7, width)), rng.normal(size=(2, width))
    with torch.no_grad():
        actual = block(torch.from_numpy(x), torch.from_numpy(c), None).numpy()
    expected = dit_block(x, c, {name: tensor.detach().numpy() for name, tensor in block.state_dict().items()}, heads)
    np.testing.assert_allclose(actual, expected, rtol=1e-12, atol=1e-12)


def test_the_time_embedding_is_the_one_of_the_paper() -> None:
    """256 frequencies as [cos, sin], then Linear, SiLU, Linear."""
    embedding = TimeEmbedding(16)
    times = torch.tensor([0.0, 1.0, 37.5, 1000.0])
    frequencies = [10_000 ** (-i / 128) for i in range(128)]
    features = np.array([[math.cos(t * f) for f in frequencies] + [math.sin(t * f) for f in frequencies] for t in times.tolist()])
    np.testing.assert_allclose(sinusoid(times, 256).numpy(), features, atol=2e-4)  # float32 angles up to 1000
    p = {name: tensor.detach().double().numpy() for name, tensor in embedding.state_dict().items()}
    expected = silu(features @ p["hidden.weight"].T + p["hidden.bias"]) @ p["out.weight"].T + p["out.bias"]
    np.testing.assert_allclose(embedding(times).detach().numpy(), expected, atol=1e-5)


def test_the_positions_of_the_dit_variant_are_the_papers() -> None:
    width, rows, columns = 16, 3, 5
    actual = sincos_positions(width, rows, columns, torch.device("cpu")).numpy().reshape(rows, columns, width)
    frequencies = [10_000 ** (-i / 4) for i in range(4)]
    for r in range(rows):
        for c in range(columns):
            expected = [f(p * w) for p in (c, r) for f in (math.sin, math.cos) for w in frequencies]
            np.testing.assert_allclose(actual[r, c], expected, atol=1e-6)


# The modern parts


def test_rotary_scores_depend_on_the_offset_between_tokens_alone() -> None:
    rows, columns, width = 5, 7, 16
    angles = rotary_angles(width, rows, columns, torch.device("cpu")).double()
    query, key = torch.randn(2, width, dtype=torch.float64).expand(rows * columns, 2, width).permute(1, 0, 2)
    turned = [rotate(x[None, None], angles.cos(), angles.sin())[0, 0].reshape(rows, columns, width) for x in (query, key)]
    scores = torch.einsum("abd,ijd->abij", *turned)
    for dr, dc in [(0, 1), (2, 0), (3, -2)]:
        same = [scores[r, c, r + dr, c + dc] for r in range(rows) for c in range(columns) if 0 <= r + dr < rows and 0 <= c + dc < columns]
        torch.testing.assert_close(torch.stack(same), same[0].expand(len(same)), rtol=0, atol=1e-6)
    assert not torch.isclose(scores[0, 0, 0, 1], scores[0, 0, 1, 0])


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 3), st.integers(1, 5), st.integers(1, 4), st.integers(1, 4), st.integers(1, 4))
def test_unpatchify_undoes_patchify_bit_for_bit(batch: int, channels: int, rows: int, columns: int, patch: int) -> None:
    images = torch.randn(batch, channels, rows * patch, columns * patch)
    tokens = patchify(images, patch)
    assert tokens.shape == (batch, rows * columns, channels * patch * patch)
    assert torch.equal(tokens[0, -1].reshape(channels, patch, patch), images[0, :, -patch:, -patch:])
    assert torch.equal(unpatchify(tokens, patch, rows * patch, columns * patch), images)


# Speed without change


@pytest.mark.parametrize("block", ["modern", "dit"])
@pytest.mark.fault
@pytest.mark.slow
def test_the_network_compiles_as_one_graph_with_the_same_numbers(block: str) -> None:
    """`fullgraph` makes a graph break an error. The graph is run by torch itself here: generating C++ takes minutes on a small machine."""
    torch._dynamo.reset()
    network = shaken(build_denoiser(tiny_network(block=block), seed=0))
    images, times = torch.randn(2, 3, 16, 16), torch.tensor([10.0, 800.0])
    compiled = torch.compile(network, fullgraph=True, backend="aot_eager")
    plain = torch.autograd.grad(network(images, times).square().sum(), list(network.parameters()))
    traced = torch.autograd.grad(compiled(images, times).square().sum(), list(network.parameters()))
    torch.testing.assert_close(compiled(images, times), network(images, times), rtol=1e-5, atol=1e-6)
    for one, other in zip(plain, traced, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-4, atol=1e-5)


@pytest.mark.fault
@pytest.mark.slow
def test_it_also_compiles_as_one_graph_the_way_the_large_presets_train() -> None:
    """Autocast, which the float32 parts suspend, dropout, and activations that are computed again."""
    torch._dynamo.reset()
    network = shaken(build_denoiser(tiny_network(dropout=0.1), seed=0), scale=0.05)
    network.recompute_activations = True
    images, times = torch.randn(2, 3, 16, 16), torch.tensor([10.0, 800.0])
    outputs = []
    for forward in (network, torch.compile(network, fullgraph=True, backend="aot_eager")):
        torch.manual_seed(7)
        with torch.backends.mkldnn.flags(enabled=False), torch.autocast("cpu", dtype=torch.bfloat16):
            output = forward(images, times)
            gradients = torch.autograd.grad(output.square().sum(), list(network.parameters()))
        outputs.append(output)
        assert all(torch.isfinite(gradient).all() for gradient in gradients)
    assert outputs[1].dtype == torch.float32
    torch.testing.assert_close(outputs[1], outputs[0], rtol=0.05, atol=0.02 * float(outputs[0].detach().abs().max()))


@pytest.mark.parametrize(
    "block", [Block(32, 2, modern=True, dropout=0.0), ResidualBlock(32, 32), LeanBlock(32, 32)], ids=lambda b: type(b).__name__
)
def test_under_bfloat16_a_block_adds_to_a_float32_input_in_float32(block: Block | ResidualBlock | LeanBlock) -> None:
    x, time = torch.randn(2, 4, 32) if isinstance(block, Block) else torch.randn(2, 32, 4, 4), torch.randn(2, 32)
    with torch.backends.mkldnn.flags(enabled=False), torch.autocast("cpu", dtype=torch.bfloat16):
        output = block(x, time, None) if isinstance(block, Block) else block(x, time)
    assert torch.equal(output, x), "a new block is the identity, to the last bit of its input"


def test_under_bfloat16_the_weights_and_gradients_stay_float32_and_the_numbers_near() -> None:
    network = shaken(build_denoiser(tiny_network(), seed=0), scale=0.05)
    images, times = torch.randn(2, 3, 16, 16), torch.tensor([10.0, 800.0])
    exact = network(images, times)
    # oneDNN is left out: it uses matrix instructions that some virtual machines announce but do not have.
    with torch.backends.mkldnn.flags(enabled=False), torch.autocast("cpu", dtype=torch.bfloat16):
        rough = network(images, times)
        rough.square().mean().backward()
    assert rough.dtype == torch.float32
    assert {parameter.dtype for parameter in network.parameters()} == {torch.float32}
    assert {parameter.grad.dtype for parameter in network.parameters() if parameter.grad is not None} == {torch.float32}
    distance = float(((rough - exact).norm() / exact.norm()).detach())
    assert 0 < distance < 0.02, distance


def test_recomputed_activations_give_the_same_gradients() -> None:
    network = shaken(build_denoiser(tiny_network(depth=2), seed=0))
    images, times = torch.randn(2, 3, 16, 16), torch.tensor([10.0, 800.0])
    gradients = []
    for recompute in (False, True):
        network.recompute_activations = recompute
        gradients.append(torch.autograd.grad(network(images, times).square().sum(), list(network.parameters())))
    assert isinstance(network, Denoiser)
    assert network.core.recompute_activations
    for stored, recomputed in zip(*gradients, strict=True):
        torch.testing.assert_close(recomputed, stored, rtol=1e-6, atol=1e-7)
