"""Ranks of a distributed run: process group, collective operations and agreement on a stop.

Promises: `Agreement` gives all ranks the same answer at the same step without making the device wait. Does not start processes; see
`components/runtime/launch.py`.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True)
class World:
    """Rank of this process among all processes and on its machine, and the number of processes of both."""

    rank: int = 0
    local_rank: int = 0
    size: int = 1
    local_size: int = 1
    rendezvous: Path | None = None
    """File through which the ranks of one machine find each other; None: torch's `env://` rendezvous, which needs a TCP port."""

    @property
    def is_first(self) -> bool:
        return self.rank == 0


@contextmanager
def process_group(world: World, device: torch.device, *, timeout_s: float) -> Iterator[None]:
    """Join the default process group (NCCL on CUDA, gloo on CPU) inside the block; does nothing in a world of one.

    A rank waits `timeout_s` for the others, here and in every collective operation.
    """
    if world.size == 1:
        yield
        return
    timeout = timedelta(seconds=timeout_s)
    place: dict[str, Any] = {}
    if world.rendezvous is not None:
        store = dist.FileStore(str(world.rendezvous), world.size)  # type: ignore[attr-defined]  # public, not re-exported in torch 2.15
        store.set_timeout(timeout)
        place = {"store": store, "rank": world.rank, "world_size": world.size}
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo",
        timeout=timeout,
        device_id=device if device.type == "cuda" else None,
        **place,
    )
    try:
        yield
    finally:
        dist.destroy_process_group()


class Agreement:
    """Agreement of all ranks at the same step on a flag that any of them raised, one step later.

    The exchange runs on the host, in the background of the step, in a process group of its own.
    """

    def __init__(self, world: World, *, timeout_s: float) -> None:
        self._world = world
        self._group = _host_group(world, timeout_s)
        self._pending: tuple[dist.Work, Tensor] | None = None
        self._agreed = False

    def exchange(self, *, raised: bool) -> bool:
        """Contribute `raised`; return whether any rank had raised its flag at the previous call."""
        if self._group is None:
            return raised
        if self._pending is not None:
            work, flag = self._pending
            work.wait()
            self._agreed = bool(flag.item())
        flag = torch.tensor([float(raised)])
        pending = dist.all_reduce(flag, op=dist.ReduceOp.MAX, group=self._group, async_op=True)
        assert pending is not None, "an asynchronous collective returns its handle"
        self._pending = (pending, flag)
        return self._agreed


_LOST_RANK_MESSAGES = (
    "Connection closed by peer",
    "Connection reset by peer",
    "Broken pipe",
    "Timed out waiting",
    "Connection was closed",
    "Socket Timeout",
    "Watchdog caught collective operation timeout",
)


_PEER_ADDRESS = re.compile(r"\[([0-9a-fA-F.:]+)\]:\d+")


def is_lost_rank(error: BaseException) -> bool:
    """Return whether `error` is raised by a collective when another rank exited or hangs; gloo's errors differ by their text alone."""
    return isinstance(error, dist.DistError) or any(message in str(error) for message in _LOST_RANK_MESSAGES)


def lost_address(error: BaseException) -> str | None:
    """Return the address of the machine whose rank exited, if gloo's `error` names one other than this machine."""
    named = _PEER_ADDRESS.search(str(error))
    return None if named is None or named[1].startswith("127.") or named[1] == "::1" else named[1]


class HostGroup:
    """A group of all ranks with a time limit of its own, on the host: to wait for a rank that itself waits for a server."""

    def __init__(self, world: World, *, timeout_s: float) -> None:
        """Every rank creates it at the same place."""
        self._world = world
        self._group = _host_group(world, timeout_s)

    def wait_for_all_ranks(self) -> None:
        """Wait until every rank has called this."""
        if self._group is not None:
            dist.barrier(group=self._group)

    def broadcast_text(self, text: str) -> str:
        """Return the `text` of rank 0 on every rank, sent as plain bytes (torch's object collectives unpickle what they receive)."""
        if self._group is None:
            return text
        raw = text.encode()
        size = torch.tensor([len(raw)])
        dist.broadcast(size, src=0, group=self._group)
        buffer = torch.zeros(int(size), dtype=torch.uint8)
        if self._world.is_first and raw:
            buffer.copy_(torch.frombuffer(bytearray(raw), dtype=torch.uint8))
        dist.broadcast(buffer, src=0, group=self._group)
        return bytes(buffer.tolist()).decode()


def mean_over_ranks(values: Tensor, world: World) -> Tensor:
    """Average `values` element by element over all ranks."""
    if world.size == 1:
        return values
    total = values.clone()
    dist.all_reduce(total)
    return total / world.size


def gather_rows(rows: Tensor, world: World) -> Tensor:
    """Concatenate the `rows` of all ranks, equal in shape, in the order of the ranks."""
    if world.size == 1:
        return rows
    parts = [torch.empty_like(rows) for _ in range(world.size)]
    dist.all_gather(parts, rows.contiguous())
    return torch.cat(parts)


def _host_group(world: World, timeout_s: float) -> dist.ProcessGroup | None:
    """Return a new group of all ranks that communicates on the host, or None for one rank; every rank creates it at the same place."""
    if world.size == 1:
        return None
    group = dist.new_group(backend="gloo", timeout=timedelta(seconds=timeout_s))
    assert isinstance(group, dist.ProcessGroup), "every rank is a member"
    return group
