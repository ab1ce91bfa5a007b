"""What a device does in a few training steps: the share of each kind of kernel, the longest kernels, and how long the device is idle."""

from collections import Counter
from collections.abc import Callable

import torch

from benchmarks.timing import wait_for

_STEPS = 3
_LONGEST = 25
_MOST_IDLE = 0.03
_KINDS = (  # the first match counts
    ("attention", ("flash", "fmha", "attention", "sdpa")),
    ("fused norms and elementwise", ("triton",)),
    ("optimiser and averages", ("adam", "multi_tensor", "foreach", "lpnorm")),
    ("copies", ("memcpy", "memset")),
    ("convolution", ("conv", "cudnn", "implicit", "wgrad", "dgrad", "nhwc", "nchw")),
    ("matrix product", ("gemm", "matmul", "cutlass", "cublas", "addmm", "nvjet", "::mm", "bmm", "linear", "splitk")),
    ("other norms and elementwise", ("elementwise", "norm", "reduce", "cat", "copy", "mul", "add", "silu")),
)


def kind_of(kernel: str) -> str:
    """Return the kind of work that the name of a kernel, or of an operation on a CPU, stands for."""
    name = kernel.lower()
    return next((kind for kind, marks in _KINDS if any(mark in name for mark in marks)), "other")


def profile_steps(step: Callable[[], object], device: torch.device, *, step_s: float) -> dict[str, object]:
    """Profile a few calls of `step`, which takes `step_s` seconds without the profiler.

    The device is idle for what of `step_s` no kernel accounts for; the profiler itself slows the host down, so its own time is not used.
    """
    from torch.profiler import ProfilerActivity, profile  # noqa: PLC0415

    cuda = device.type == "cuda"
    with profile(activities=[ProfilerActivity.CUDA if cuda else ProfilerActivity.CPU]) as trace:
        for _ in range(_STEPS):
            step()
        wait_for(device)
    totals: Counter[str] = Counter()
    calls: Counter[str] = Counter()
    for event in trace.key_averages():
        totals[event.key] += (event.self_device_time_total if cuda else event.self_cpu_time_total) / _STEPS / 1e3
        calls[event.key] += event.count
    kinds: Counter[str] = Counter()
    for kernel, milliseconds in totals.items():
        kinds[kind_of(kernel)] += milliseconds
    busy_ms = sum(totals.values())
    idle = max(0.0, 1 - busy_ms / 1e3 / step_s)
    return {
        "busy_ms": round(busy_ms, 3),
        "idle": round(idle, 4),
        "shares": {kind: round(milliseconds / max(busy_ms, 1e-9), 4) for kind, milliseconds in kinds.most_common()},
        "kernels": [
            {"ms": round(milliseconds, 3), "calls": calls[kernel] // _STEPS, "name": kernel[:160]}
            for kernel, milliseconds in totals.most_common(_LONGEST)
        ],
        "passed": idle < _MOST_IDLE if cuda else True,
    }
