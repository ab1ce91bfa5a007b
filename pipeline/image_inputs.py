"""What the images are built from: the digest of all of it, and the pin of torch in an index of wheels for CPUs.

Promises: the same files and base image have the same digest, in any checkout; the address of an index is written into no file.
"""

import hashlib
import re
import subprocess
import sysconfig
from collections.abc import Iterable
from pathlib import Path

from components.errors import BadInput, TemporaryFailure, shorten

CPU_WHEELS = Path("requirements/cpu-wheels.txt")
_CONTEXT = ("requirements/*.txt", "pyproject.toml", "README.md", "LICENSE", "docker/*.py", "docker/Dockerfile", ".dockerignore")
_PACKAGES = ("model", "components", "pipeline")


def context_sha256(*settings: str, root: Path = Path()) -> str:
    """Return the digest of the files below `root` that a build can read, and of `settings`, such as the base image."""
    digest = hashlib.sha256()
    for path in sorted(_context_files(root)):
        content = hashlib.sha256(path.read_bytes()).hexdigest()
        digest.update(f"{path.relative_to(root)} {content}\n".encode())
    digest.update("\n".join(settings).encode())
    return digest.hexdigest()


def _context_files(root: Path) -> Iterable[Path]:
    for pattern in _CONTEXT:
        yield from root.glob(pattern)
    for package in _PACKAGES:
        for path in (root / package).rglob("*"):
            if path.is_file() and path.parent.name != "__pycache__" and path.suffix != ".pyc":
                yield path


def pin_cpu_wheels(index: str, *, root: Path = Path()) -> Path:
    """Pin torch as the index at the address `index` has it for CPUs, with hashes, unless that is done; return the file.

    Later builds accept the files that were pinned first, and no others.

    Raises:
        BadInput: if the index does not have the version of `requirements/cpu.txt`. TemporaryFailure: if a signal ends the resolution.
    """
    (requirement,) = re.findall(r"^torch==[^\s;+]+", (root / "requirements/cpu.txt").read_text(), re.MULTILINE)
    path = root / CPU_WHEELS
    if path.exists() and re.findall(r"^[\w-]+==[^\s+]+", path.read_text(), re.MULTILINE) == [requirement]:
        return path
    uv = [str(Path(sysconfig.get_path("scripts"), "uv")), "pip", "compile", "--quiet", "--no-deps", "--generate-hashes", "--no-annotate"]
    options = [
        "--default-index",
        index,
        "--python-platform",
        "linux",
        "--custom-compile-command",
        "make images",
        "--output-file",
        str(path),
    ]
    result = subprocess.run([*uv, *options, "-"], input=requirement, capture_output=True, text=True, check=False)
    if result.returncode:
        path.unlink(missing_ok=True)
        reason = shorten(" ".join(result.stderr.replace(index, "the index").split()), max_characters=1000)
        if result.returncode < 0:
            raise TemporaryFailure(f"`uv pip compile` was ended by signal {-result.returncode}", hint="run `make images` again")
        raise BadInput(f"the index of wheels for CPUs cannot be used: {reason}", hint="give the address of a simple index (PEP 503)")
    return path
