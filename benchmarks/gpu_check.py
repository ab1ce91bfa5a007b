"""What one GPU does with this project, in order of value: `make gpu-check`, or `python -m benchmarks.gpu_check --out FILE`.

Promises: needs no network; the JSON file is complete after each item, so that a cut leaves the rest; an item that fails says why and the
next one runs; an item that no longer fits `--budget-s` is left out and named. With `--toy` everything runs at toy size on a CPU in seconds.
Every item is in `gpu_items.py`.
"""

import argparse
import json
import os
import platform
import sys
import time
import traceback
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu_items import ITEMS, Size

_TOY = Size(
    presets=("smoke",), batch={"smoke": 4}, steps=2, warmup=1, sample_images=(1, 2), compiled=False, device="cpu", precision="float32"
)
_FULL = Size(
    presets=("celebahq256-b", "celebahq256-l", "celebahq256-s"),
    batch={"celebahq256-b": 128, "celebahq256-s": 256, "celebahq256-l": 64},
    steps=10,
    warmup=3,
    sample_images=(1, 256),
    compiled=True,
    device="cuda",
    precision="bfloat16",
)


def facts(size: Size) -> dict[str, Any]:
    """Return device, versions and command."""
    cuda = size.device == "cuda"
    return {
        "device": torch.cuda.get_device_name() if cuda else f"{_cpu_name()} (CPU, one thread)",
        "memory_gb": round(torch.cuda.get_device_properties(0).total_memory / 1e9, 1) if cuda else None,
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "python": platform.python_version(),
        "command": " ".join(["python -m benchmarks.gpu_check", *sys.argv[1:]]),
        "toy": not cuda,
    }


def _cpu_name() -> str:
    from components.stores.measured_speed import cpu_name  # noqa: PLC0415 - needs boto3, which a machine with a GPU may lack

    return cpu_name()


def write(path: Path, report: dict[str, Any]) -> None:
    """Write the report so far; a reader never sees half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(report, indent=2) + "\n")
    partial.replace(path)


def check(size: Size, out: Path, *, budget_s: float, only: list[str] | None = None) -> dict[str, Any]:
    """Run all items, or those in `only`, and return the report that `out` has, too."""
    report: dict[str, Any] = {"facts": facts(size), "items": {}}
    write(out, report)
    started_s = time.monotonic()
    for item in ITEMS:
        if only is not None and item.name not in only:
            continue
        left_s = budget_s - (time.monotonic() - started_s)
        if left_s < item.least_s and size.device == "cuda":
            report["items"][item.name] = {"left_out": f"{left_s:.0f} s were left, it needs about {item.least_s:.0f} s"}
            write(out, report)
            continue
        began_s = time.monotonic()
        try:
            result: dict[str, Any] = item.measure(size)
        except Exception as error:  # the others are still worth measuring
            result = {"error": f"{type(error).__name__}: {error}"[:2000], "where": traceback.format_exc()[-2000:]}
        report["items"][item.name] = {"seconds": round(time.monotonic() - began_s, 2), **result}
        write(out, report)
        print(f"{item.name}: {json.dumps(report['items'][item.name])[:400]}", file=sys.stderr, flush=True)
    return report


def main() -> int:
    """Run the check from the command line; 1 if an item failed."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0], epilog="example: python -m benchmarks.gpu_check --toy")
    parser.add_argument("--out", type=Path, default=Path("gpu-check.json"), help="where the JSON goes")
    parser.add_argument("--toy", action="store_true", help="toy size on the CPU, to find typing errors before a device is paid for")
    parser.add_argument("--budget-s", type=float, default=480, help="no item begins that does not fit into this")
    parser.add_argument("--only", nargs="+", choices=[item.name for item in ITEMS], help="these items alone")
    arguments = parser.parse_args()
    if not arguments.toy and not torch.cuda.is_available():
        print("gpu-check: torch sees no CUDA device; use --toy to try it on the CPU", file=sys.stderr)
        return 2
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    if arguments.toy:
        os.environ.setdefault("OMP_NUM_THREADS", "1")  # for the processes of `resume`
        torch.set_num_threads(1)
    report = check(_TOY if arguments.toy else _FULL, arguments.out, budget_s=arguments.budget_s, only=arguments.only)
    failed = [name for name, result in report["items"].items() if "error" in result or result.get("passed") is False]
    print(f"wrote {arguments.out}" + (f"; failed: {', '.join(failed)}" if failed else ""), file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
