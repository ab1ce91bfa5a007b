"""Diffusers' networks for comparison: the same input, one output of the same shape, random weights.

Promises: `peers_of(config)` builds what other people would train in place of the given network. diffusers is only needed here; it is
installed by `make bench-tools`.
"""

from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version

from torch import Tensor, nn

from benchmarks.small_peers import DiffusersDiT
from model.config import NetworkConfig


class _UNet(nn.Module):
    """The network of google/ddpm-celebahq-256 (114 M parameters), for images of any side."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        from diffusers import UNet2DModel  # noqa: PLC0415 - an extra; importing it takes seconds

        self.network = UNet2DModel(
            sample_size=config.image_px,
            in_channels=3,
            out_channels=3,
            layers_per_block=2,
            block_out_channels=(128, 128, 256, 256, 512, 512),
            down_block_types=("DownBlock2D",) * 4 + ("AttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "AttnUpBlock2D") + ("UpBlock2D",) * 4,
            downsample_padding=0,
            attention_head_dim=None,
            flip_sin_to_cos=False,
            freq_shift=1,
            norm_eps=1e-6,
        )

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.network(x, t, return_dict=False)[0]


PEERS: dict[str, Callable[[NetworkConfig], nn.Module]] = {
    "diffusers UNet2DModel": _UNet,
    "diffusers DiTTransformer2DModel": lambda config: DiffusersDiT(config, config.total_stride_px),
}
"""The transformer is as wide and deep as our network, and has as many tokens."""


def diffusers_version() -> str | None:
    """Return the version of diffusers, or None if it is not installed."""
    try:
        return version("diffusers")
    except PackageNotFoundError:
        return None
