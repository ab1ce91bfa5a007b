"""DINOv2's network: against torchvision's Vision Transformer with the same random weights, and its resized positions and images."""

import re
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torchvision.models import VisionTransformer

from components.errors import DataRefused
from components.evaluate.config import EvaluationConfig
from components.evaluate.measured import headline_metric
from components.features.dinov2 import DinoV2, DinoV2Extractor, load_dinov2
from components.features.extractors import identity_of
from components.preflight.metric_networks import NETWORKS

WIDTH, DEPTH, HEADS, SIDE = 48, 3, 4, 4


def random_network(side: int = SIDE) -> DinoV2:
    torch.manual_seed(0)
    network = DinoV2(width=WIDTH, depth=DEPTH, heads=HEADS, trained_side=side).eval()
    for parameter in network.parameters():
        parameter.data = torch.randn_like(parameter) * (0.3 if parameter.ndim > 1 else 0.8)
    return network


def as_torchvision(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same function under torchvision's names, which has no LayerScale: it is multiplied into the layer before it."""
    named = {
        "class_token": weights["cls_token"],
        "encoder.pos_embedding": weights["pos_embed"],
        "conv_proj.weight": weights["patch_embed.proj.weight"],
        "conv_proj.bias": weights["patch_embed.proj.bias"],
        "encoder.ln.weight": weights["norm.weight"],
        "encoder.ln.bias": weights["norm.bias"],
    }
    for at in range(DEPTH):
        source, target = f"blocks.{at}.", f"encoder.layers.encoder_layer_{at}."
        for part in ("weight", "bias"):
            of_attention, of_mlp = weights[f"{source}ls1.gamma"], weights[f"{source}ls2.gamma"]
            scale_a, scale_m = (of_attention[:, None], of_mlp[:, None]) if part == "weight" else (of_attention, of_mlp)
            named |= {
                f"{target}ln_1.{part}": weights[f"{source}norm1.{part}"],
                f"{target}self_attention.in_proj_{part}": weights[f"{source}attn.qkv.{part}"],
                f"{target}self_attention.out_proj.{part}": scale_a * weights[f"{source}attn.proj.{part}"],
                f"{target}ln_2.{part}": weights[f"{source}norm2.{part}"],
                f"{target}mlp.0.{part}": weights[f"{source}mlp.fc1.{part}"],
                f"{target}mlp.3.{part}": scale_m * weights[f"{source}mlp.fc2.{part}"],
            }
    return named


def test_the_network_equals_torchvisions_transformer_with_the_same_weights() -> None:
    network = random_network()
    theirs = VisionTransformer(
        image_size=14 * SIDE, patch_size=14, num_layers=DEPTH, num_heads=HEADS, hidden_dim=WIDTH, mlp_dim=4 * WIDTH, num_classes=1
    ).eval()
    theirs.heads = torch.nn.Identity()
    theirs.load_state_dict(as_torchvision(network.state_dict()), strict=True)
    images = torch.randn(3, 3, 14 * SIDE, 14 * SIDE)
    with torch.inference_mode():
        mine, expected = network(images), theirs(images)
    assert mine.std() > 0.1
    assert torch.allclose(mine, expected, atol=2e-5)


def test_positions_are_read_a_tenth_of_a_patch_further_than_their_number_says() -> None:
    network = DinoV2(width=WIDTH, depth=1, heads=HEADS)
    rows = torch.arange(37.0)[:, None].expand(37, 37).reshape(1, -1, 1)
    network.pos_embed.data[:, 1:] = rows
    grid = network.positions(16)[0, 1:, 0].reshape(16, 16)
    expected = (torch.arange(16) + 0.5) * 37 / 16.1 - 0.5
    assert torch.allclose(grid[1:-1, 5], expected[1:-1], atol=0.05)
    assert torch.equal(network.positions(37), network.pos_embed)


def test_images_of_any_side_are_resized_to_224_and_normalised() -> None:
    seen: list[Tensor] = []
    network = random_network(16)
    network.register_forward_pre_hook(lambda module, arguments: seen.append(arguments[0]))
    grey = torch.full((1, 3, 40, 40), 128, dtype=torch.uint8)
    with torch.inference_mode():
        (features,) = DinoV2Extractor(network)(grey)
    assert features.shape == (1, WIDTH)
    assert seen[0].shape == (1, 3, 224, 224)
    assert seen[0][0, 1, 100, 100].item() == pytest.approx((128 / 255 - 0.456) / 0.224, abs=1e-5)


def test_the_published_names_and_shapes_are_expected_by_preflight() -> None:
    with torch.device("meta"):
        tensors = {name: tuple(tensor.shape) for name, tensor in DinoV2().state_dict().items()}
    assert set(tensors) == set(NETWORKS["dinov2-vit-l-14"])
    assert len(tensors) == 343
    assert all(shape is None or shape == tensors[name] for name, shape in NETWORKS["dinov2-vit-l-14"].items())


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    torch.save(random_network().state_dict(), tmp_path / "small.pth")
    with pytest.raises(DataRefused, match=re.escape("dinov2-vit-l-14' cannot be loaded")):
        load_dinov2(tmp_path / "small.pth", "small.pth", torch.device("cpu"))


def test_the_distance_is_named_after_dinov2_and_the_resize_is_a_part_of_the_identity() -> None:
    config = EvaluationConfig(extractor="dinov2-vit-l-14", weights="w", weights_sha256="1" * 64)
    assert headline_metric(config) == "eval/fd_dinov2_50k"
    assert identity_of(config) == f"dinov2-vit-l-14-bicubic-antialias-224-{'1' * 64}"
