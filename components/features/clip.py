"""CLIP's image networks: torch-fidelity's architecture and resize, with weights that are read as plain tensors.

Promises: the same features as torch-fidelity's own extractor on the same file, which it opens with `torch.jit.load` and so runs code of.
Files are OpenAI's TorchScript archives (read by `script_archive.py`) or a state dict of theirs; tensors of another network are refused.
"""

from pathlib import Path

import torch
from torch import Tensor
from torch_fidelity.feature_extractor_base import FeatureExtractorBase
from torch_fidelity.feature_extractor_clip import FeatureExtractorCLIP, build_model

from components.features.script_archive import is_script_archive, read_script_tensors

_FIRST_LAYERS = {
    "clip-vit-b-32": ("visual.conv1.weight", (768, 3, 32, 32), 50),
    "clip-vit-b-16": ("visual.conv1.weight", (768, 3, 16, 16), 197),
    "clip-vit-l-14": ("visual.conv1.weight", (1024, 3, 14, 14), 257),
    "clip-vit-l-14-336px": ("visual.conv1.weight", (1024, 3, 14, 14), 577),
}
"""Name of the extractor -> a tensor, its shape, and the number of positions; the rest follows from the tensors."""


def is_clip(name: str) -> bool:
    """Return whether an extractor of torch-fidelity is one of CLIP's."""
    return name.startswith("clip-")


class ClipExtractor(FeatureExtractorCLIP):  # type: ignore[misc]  # torch-fidelity is not typed
    """torch-fidelity's extractor, whose network is built from `tensors`."""

    def __init__(self, name: str, features_list: list[str], tensors: dict[str, Tensor]) -> None:
        FeatureExtractorBase.__init__(self, name, features_list)  # FeatureExtractorCLIP's own loads or downloads an archive
        self.feature_extractor_internal_dtype = torch.float32
        self.model = build_model(dict(tensors), torch.float32)
        self.resolution = self.model.visual.input_resolution
        self.requires_grad_(False)
        self.eval()


def load_clip(name: str, layers: list[str], path: Path) -> ClipExtractor:
    """Return the extractor `name` with the weights at `path`.

    Raises:
        ValueError: if they belong to another network. DataRefused: if the file holds more than tensors.
    """
    tensors = read_script_tensors(path) if is_script_archive(path) else torch.load(path, map_location="cpu", weights_only=True)
    check_network(name, tensors)
    return ClipExtractor(name, layers, tensors)


def check_network(name: str, tensors: dict[str, Tensor]) -> None:
    """Check that `tensors` are those of CLIP's network `name`.

    Raises:
        ValueError: if they are not, with what is there.
    """
    if name not in _FIRST_LAYERS:
        if "visual.proj" in tensors or "visual.layer1.0.conv1.weight" not in tensors:
            raise ValueError(f"these are not the tensors of {name}, which is a ResNet")
        return
    first, shape, positions = _FIRST_LAYERS[name]
    actual = [tuple(tensors[key].shape) if key in tensors else None for key in (first, "visual.positional_embedding")]
    if actual != [shape, (positions, shape[0])]:
        raise ValueError(f"{first} and its positions have the shapes {actual}, {name} has {[shape, (positions, shape[0])]}")
