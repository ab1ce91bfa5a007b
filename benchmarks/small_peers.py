"""Networks of other libraries, of about as many parameters as the network of `demo`, for `learning.py`.

Promises: each takes noisy images (b, 3, h, w) and timesteps (b,) in [0, 1000], and returns a tensor like the images. diffusers and
denoising-diffusion-pytorch are imported when a network is built; `make bench-tools` installs them.
"""

from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from model.config import NetworkConfig

_TOKENS_PER_SIDE = 8
_UNET_CHANNELS = (32, 48, 72, 88)
_LUCIDRAINS_CHANNELS = 26


class DiffusersUNet(nn.Module):
    """UNet2DModel of diffusers with four levels, one layer for each, and attention at the third."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        from diffusers import UNet2DModel  # noqa: PLC0415 - an extra; importing it takes seconds

        self.network = UNet2DModel(
            sample_size=config.image_px,
            layers_per_block=1,
            block_out_channels=_UNET_CHANNELS,
            down_block_types=("DownBlock2D", "DownBlock2D", "AttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "AttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
            norm_num_groups=8,
        )

    def forward(self, x: Float[Tensor, "b 3 h w"], t: Float[Tensor, " b"]) -> Float[Tensor, "b 3 h w"]:
        return cast(Tensor, self.network(x, t, return_dict=False)[0])


class DiffusersDiT(nn.Module):
    """DiTTransformer2DModel of diffusers on pixels, with the width, depth and heads of the config; 64 tokens unless `patch_px` is given."""

    def __init__(self, config: NetworkConfig, patch_px: int | None = None) -> None:
        super().__init__()
        from diffusers import DiTTransformer2DModel  # noqa: PLC0415 - as above

        self.network = DiTTransformer2DModel(
            num_attention_heads=config.heads,
            attention_head_dim=config.width // config.heads,
            in_channels=3,
            out_channels=3,
            num_layers=config.depth,
            sample_size=config.image_px,
            patch_size=patch_px or config.image_px // _TOKENS_PER_SIDE,
        )

    def forward(self, x: Float[Tensor, "b 3 h w"], t: Float[Tensor, " b"]) -> Float[Tensor, "b 3 h w"]:
        labels = torch.zeros(len(x), dtype=torch.long, device=x.device)
        return cast(Tensor, self.network(x, timestep=t, class_labels=labels, return_dict=False)[0])


class LucidrainsUNet(nn.Module):
    """Unet of denoising-diffusion-pytorch with three levels."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        from denoising_diffusion_pytorch import Unet  # noqa: PLC0415 - as above

        self.network = Unet(_LUCIDRAINS_CHANNELS, dim_mults=(1, 2, 4))

    def forward(self, x: Float[Tensor, "b 3 h w"], t: Float[Tensor, " b"]) -> Float[Tensor, "b 3 h w"]:
        return cast(Tensor, self.network(x, t))
