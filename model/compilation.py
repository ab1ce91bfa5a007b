"""Compilation of networks with torch.compile: block by block, or as one graph.

Promises: names of parameters stay; the kernels that are chosen do not depend on timings made on the device, so that a restarted run picks
the same ones. Block by block, each kind of block and of layer between blocks is compiled once, in a minute where one graph of a large
network takes several. The backward pass is a chain of graphs, and DistributedDataParallel reduces gradients while it runs.
"""

import inspect
from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import nn

from model.codec import PlainDecoder, PlainEncoder, ResidualDecoder, ResidualEncoder
from model.dit import Block
from model.residual_blocks import LeanBlock, ResidualBlock

INDUCTOR_OPTIONS: Mapping[str, Any] = {
    # Inductor times variants of kernels when it compiles, and could pick others after a restart.
    "deterministic": True
}
NETWORK_OPTIONS: Mapping[str, Any] = {
    **INDUCTOR_OPTIONS,
    # It gives up channels-last for the whole graph where one convolution has half as many outputs as inputs, as the output layer has.
    "force_layout_optimization": True,
    # By default an expression that reads more than four tensors, or has over thirty operations, is written to memory when it is used twice:
    # the derivatives of norms would be, in float32.
    "realize_reads_threshold": 8,
    "realize_opcount_threshold": 80,
}
_METHODS: Mapping[type[nn.Module], tuple[str, ...]] = {
    **dict.fromkeys((Block, ResidualBlock, LeanBlock, PlainEncoder, PlainDecoder), ("forward",)),
    # What lies between the residual blocks: not compiled, the last norm alone would take as long as a block.
    ResidualEncoder: ("enter", "down"),
    ResidualDecoder: ("merge", "up", "to_image"),
}
# Each kind of block is one more graph of the same function, and networks of several sizes may share a process. torch 2.11 has no such limit
# for one function alone.
_LIMIT: Mapping[str, Any] = {"recompile_limit": 64} if "recompile_limit" in inspect.signature(torch.compile).parameters else {}


def compile_network(network: nn.Module, *, by_block: bool, backend: str = "inductor") -> nn.Module:
    """Return the compiled `network`; with `by_block` it is `network` itself, whose blocks and layers are replaced by compiled ones.

    A network without such blocks is compiled as one graph. Copy a network before it is compiled by block: a later copy would compute with
    the weights of the original.
    """
    settings: dict[str, Any] = {"fullgraph": True, "dynamic": False, "backend": backend}
    settings["options"] = dict(NETWORK_OPTIONS) if backend == "inductor" else None
    methods = [(module, name) for module in network.modules() for name in _METHODS.get(type(module), ())] if by_block else []
    if not methods:
        return cast(nn.Module, torch.compile(network, **settings))
    for module, name in methods:
        # The class's own functions: `Module.compile` would put all kinds of blocks into the cache of one function, which is bounded.
        setattr(module, name, torch.compile(getattr(module, name), **settings, **_LIMIT))
    return network
