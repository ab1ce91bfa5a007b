"""The tensors of the networks that metrics are taken from, as their published weights name them; a shape where another file has another."""

Shapes = dict[str, tuple[int, ...] | None]

_DOUBLE_3 = "branch3x3dbl_1 branch3x3dbl_2 branch3x3dbl_3"
_SEVEN = "branch7x7_1 branch7x7_2 branch7x7_3 branch7x7dbl_1 branch7x7dbl_2 branch7x7dbl_3 branch7x7dbl_4 branch7x7dbl_5"
_WIDE = "branch3x3_1 branch3x3_2a branch3x3_2b branch3x3dbl_1 branch3x3dbl_2 branch3x3dbl_3a branch3x3dbl_3b"
_INCEPTION_BLOCKS = {
    **dict.fromkeys(("5b", "5c", "5d"), f"branch1x1 branch5x5_1 branch5x5_2 {_DOUBLE_3} branch_pool"),
    "6a": f"branch3x3 {_DOUBLE_3}",
    **dict.fromkeys(("6b", "6c", "6d", "6e"), f"branch1x1 {_SEVEN} branch_pool"),
    "7a": "branch3x3_1 branch3x3_2 branch7x7x3_1 branch7x7x3_2 branch7x7x3_3 branch7x7x3_4",
    **dict.fromkeys(("7b", "7c"), f"branch1x1 {_WIDE} branch_pool"),
}
_INCEPTION_STEM = ("Conv2d_1a_3x3", "Conv2d_2a_3x3", "Conv2d_2b_3x3", "Conv2d_3b_1x1", "Conv2d_4a_3x3")
_OF_CONVOLUTION = ("conv.weight", "bn.weight", "bn.bias", "bn.running_mean", "bn.running_var")
_VGG16_CONVOLUTIONS = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)
_VGG16_LINEAR = (0, 3, 6)
_DINOV2_LAYERS = ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")


def _inception() -> Shapes:
    mixed = [f"Mixed_{block}.{branch}" for block, branches in _INCEPTION_BLOCKS.items() for branch in branches.split()]
    shapes: Shapes = {f"{layer}.{tensor}": None for layer in (*_INCEPTION_STEM, *mixed) for tensor in _OF_CONVOLUTION}
    return {**shapes, "fc.weight": (1008, 2048), "fc.bias": (1008,)}  # torchvision's own Inception has 1000 classes


def _vgg16() -> Shapes:
    layers = [f"features.{at}" for at in _VGG16_CONVOLUTIONS] + [f"classifier.{at}" for at in _VGG16_LINEAR]
    shapes: Shapes = {f"{layer}.{tensor}": None for layer in layers for tensor in ("weight", "bias")}
    return {**shapes, "features.0.weight": (64, 3, 3, 3), "classifier.0.weight": (4096, 25088)}


def _dinov2() -> Shapes:
    of_block = [f"{layer}.{tensor}" for layer in _DINOV2_LAYERS for tensor in ("weight", "bias")] + ["ls1.gamma", "ls2.gamma"]
    shapes: Shapes = {f"blocks.{at}.{name}": None for at in range(24) for name in of_block}
    others = ("cls_token", "mask_token", "norm.weight", "norm.bias", "patch_embed.proj.bias")
    return {**shapes, **dict.fromkeys(others), "pos_embed": (1, 1370, 1024), "patch_embed.proj.weight": (1024, 3, 14, 14)}


NETWORKS: dict[str, Shapes] = {"inception-v3-compat": _inception(), "vgg16": _vgg16(), "dinov2-vit-l-14": _dinov2()}
"""Name of the network, as `evaluation.extractor` has it -> its tensors."""
