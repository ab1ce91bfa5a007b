"""Convolutions without TF32: cuDNN rounds the factors to ten bits if it may, which moves a distance in its third digit."""

from contextlib import AbstractContextManager

from torch.backends import cudnn


def full_convolutions() -> AbstractContextManager[None]:
    """Use cuDNN without TF32, and leave its other settings as they are; `cudnn.flags` alone would turn cuDNN off."""
    return cudnn.flags(enabled=True, benchmark=cudnn.benchmark, deterministic=cudnn.deterministic, allow_tf32=False)
