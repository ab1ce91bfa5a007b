"""Estimate how many images fit into memory at once, from a run with two.

Promises: the result depends on the network and on the free memory alone, is a power of two, and uses at most half of the free memory.
"""

import weakref
from collections.abc import Callable
from typing import Any

import psutil
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

MAX_IMAGES = 256
_MEMORY_SHARE = 0.5
_PROBE_IMAGES = 2


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of the live tensors that operations allocate, in the same way on every device."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.peak = 0
        self.live = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self._count(tensor)
        return result

    def _count(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        identity, size = storage._cdata, storage.nbytes()
        if identity in self._known:
            return
        self._known.add(identity)
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._forget, identity, size)

    def _forget(self, identity: int, size: int) -> None:
        self._known.discard(identity)
        self.live -= size


def max_images_in_memory(call: Callable[[int], object], device: torch.device, *, sharers: int = 1, limit: int = MAX_IMAGES) -> int:
    """Return the largest power of two, up to `limit`, of images that `call` can process at once, measured with two.

    `sharers` processes share the memory of the device.
    """
    with LiveBytes() as live_bytes:
        call(_PROBE_IMAGES)
    per_image = max(1, live_bytes.peak // _PROBE_IMAGES)
    available_bytes = int(free_bytes(device) * _MEMORY_SHARE / sharers)
    return largest_power_of_two(min(limit, available_bytes // per_image))


def largest_power_of_two(limit: int) -> int:
    """Return the largest power of two that is not above `limit`, at least 1."""
    return 1 << max(0, limit.bit_length() - 1) if limit >= 1 else 1


def free_bytes(device: torch.device) -> int:
    """Return the free memory of a device."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else int(psutil.virtual_memory().available)
