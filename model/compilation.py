"""Compilation of networks with torch.compile: as one graph, or block by block.

Promises: names of parameters stay; the kernels that are chosen do not depend on timings made on the device, so that a restarted run picks
the same ones. One rank compiles the network as one graph. Several compile each kind of block once: the backward pass is then a chain of
graphs, and DistributedDataParallel reduces gradients while it runs, instead of all of them after one graph.
"""

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import nn

from model.codec import LeanBlock, ResidualBlock, ResidualDecoder, ResidualEncoder
from model.dit import Block

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
_MOST_GRAPHS_OF_A_FUNCTION = 64
_BLOCKS = (Block, ResidualBlock, LeanBlock)
_METHODS: Mapping[type[nn.Module], tuple[str, ...]] = {
    **dict.fromkeys(_BLOCKS, ("forward",)),
    # What lies between the residual blocks: not compiled, the last norm alone would take as long as a block.
    ResidualEncoder: ("enter", "down"),
    ResidualDecoder: ("merge", "up", "to_image"),
}


def compile_network(network: nn.Module, *, by_block: bool, backend: str = "inductor") -> nn.Module:
    """Return the compiled `network`; with `by_block` it is `network` itself, whose blocks are compiled in place.

    A network without such blocks is compiled as one graph.
    """
    options = dict(NETWORK_OPTIONS) if backend == "inductor" else None
    if not by_block or not any(isinstance(module, _BLOCKS) for module in network.modules()):
        return cast(nn.Module, torch.compile(network, fullgraph=True, dynamic=False, backend=backend, options=options))
    # Each kind of block is one more graph of the same function, and networks of several sizes may share a process.
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, _MOST_GRAPHS_OF_A_FUNCTION)
    for module in network.modules():
        for name in _METHODS.get(type(module), ()):
            # The class's own functions: `Module.compile` would put all kinds of blocks into the cache of one function, which is bounded.
            compiled = torch.compile(getattr(module, name), fullgraph=True, dynamic=False, backend=backend, options=options)
            setattr(module, name, compiled)
    return network
