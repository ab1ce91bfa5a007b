"""Delete the CUDA libraries that torch does not load where there is no GPU: for the cpu image.

PyPI's torch for Linux is linked against CUDA, and cannot be imported without most of its libraries (2.15). What the loader does not map for
that import, like cuDNN's engines, is only ever used on a GPU.
"""

from pathlib import Path

import torch

libraries = Path(torch.__file__).parents[1] / "nvidia"
mapped = {line.rstrip().rpartition(" ")[2] for line in Path("/proc/self/maps").read_text().splitlines()}
for path in libraries.rglob("*"):
    if path.is_file() and str(path.resolve()) not in mapped:
        path.unlink()
