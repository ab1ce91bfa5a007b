"""Time of calls on a device, which works on after a call returns: the clock is read when it has finished."""

import time
from collections.abc import Callable

import torch


def wait_for(device: torch.device) -> None:
    """Wait until `device` has finished what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds_per_call(call: Callable[[], object], device: torch.device, *, calls: int = 1) -> float:
    """Return the mean wall-clock seconds of `calls` calls in a row."""
    wait_for(device)
    began_s = time.perf_counter()
    for _ in range(calls):
        call()
    wait_for(device)
    return (time.perf_counter() - began_s) / calls
