"""Divide the pinned requirements of the two images, so that what both have is one layer: `python layers.py FOLDER`.

Writes into FOLDER: `common.txt` (pinned for both images), `torch.txt` (torch and CUDA), `cpu.txt` and `gpu.txt` (pinned for that image
alone). Needs only the standard library.
"""

import re
import sys
from pathlib import Path

_OF_TORCH = re.compile(r"torch|triton|nvidia-.*|cuda-.*")


def read_pins(path: Path) -> dict[str, str]:
    """Return the pins of a requirements file: name and marker -> lines with hashes."""
    pins: dict[str, str] = {}
    head = ""
    for line in path.read_text().splitlines(keepends=True):
        if re.match(r"\w", line):
            head = line.rstrip(" \\\n")
            pins[head] = ""
        if head and not line.lstrip().startswith("#"):
            pins[head] += line
    return pins


def main(folder: Path) -> None:
    """Write the files."""
    cpu, gpu = (read_pins(Path("requirements") / name) for name in ("cpu.txt", "run.txt"))
    layers: dict[str, list[str]] = {"common": [], "torch": [], "cpu": [], "gpu": []}
    for head, lines in {**cpu, **gpu}.items():
        name = re.split(r"[=\s;\[]", head)[0]
        if _OF_TORCH.fullmatch(name):
            layer = "torch"
        elif head in cpu and head in gpu:
            layer = "common"
        else:
            layer = "cpu" if head in cpu else "gpu"
        layers[layer].append(lines)
    folder.mkdir(parents=True, exist_ok=True)
    for layer, pins in layers.items():
        (folder / f"{layer}.txt").write_text("".join(pins))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
