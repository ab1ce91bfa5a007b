"""Delete from installed packages what no step and no server loads: `python slim.py FOLDER`. Prints the size before and after.

Deletes tests, headers, static libraries, files of types, data of AWS services other than S3, the client of Databricks, and the symbol
tables of shared libraries, which only a debugger reads. Libraries that others are linked with and never call become stubs. With
`--split CPU GPU`, FOLDER also holds torch and CUDA: what only a GPU or torch.compile needs is moved to GPU, and CPU gets what torch cannot
be imported without where there is none, large libraries as stubs. With `--without-compiler`, FOLDER holds torch built for CPUs, and what
torch.compile needs is deleted. Run by `docker/Dockerfile`.

With `--without-gpu`, only the CUDA libraries are deleted that torch can be imported without. Run by `make slim`.
"""

import argparse
import os
import re
import shutil
import struct
import subprocess
import sys
from pathlib import Path

_FOLDERS = {"tests"}
_FILES = re.compile(r".*\.(a|map|pyi)|libcusolverMg\.so.*|libnvshmem_device.*|libtriton_amd_codegen\.so|protoc(-[\d.]+)?")
_SOURCES = re.compile(r".*\.(h|hpp|cuh|inl|c|cc|cpp|cu|pyx|pxd|pxi)")
_COMPILERS = {"triton", "torch"}
"""Packages that compile at run time, from sources and headers of their own."""
_OF_TORCH = re.compile(r"test/.*|bin/test_.*|lib/lib.*_test\.so")
"""Programs that test torch; wheels for CPUs have them."""
_OF_COMPILER = (
    "include",
    "_inductor/kernel",
    "_inductor/fx_passes",
    "testing/_internal/opinfo",
    "testing/_internal/common_methods_invocations.py",
)
"""Parts of torch that only torch.compile and torch's tests load; the steps of the cpu image neither compile nor train."""
_PYARROW = re.compile(r"(lib)?(arrow|arrow_python)?_flight\b.*|_pyarrow_cpp_tests.*|_substrait\..*")
_OTHER_SERVICES = {"databricks/sdk"}
"""MLflow imports it for Databricks alone; the package around it has to stay, because MLflow looks for others in it."""
_BOTOCORE = {"s3", "sts", "sso", "sso-oidc", "signin"}
_NEVER_CALLED = {r"pyarrow/libarrow_substrait\.so\..*": "", r"pillow_heif\.libs/libx265-.*\.so\..*": "x265_.*"}
"""Libraries that have to be there, and the symbols that others need to be loaded: of Arrow's query plans, which only `pyarrow.substrait`
calls, and of the encoder of HEIC, because images are only decoded."""
_STUB_BYTES = 8 << 20
_STRIP_BYTES = 100_000


def main() -> None:
    """Slim a folder of packages."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--split", nargs=2, type=Path, metavar=("CPU", "GPU"))
    parser.add_argument("--without-compiler", action="store_true")
    parser.add_argument("--without-gpu", action="store_true")
    arguments = parser.parse_args()
    folder: Path = arguments.folder.resolve()
    before = size_bytes(folder)
    if arguments.without_gpu:
        delete_unmapped(folder)
    else:
        slim(folder)
    if arguments.without_compiler:
        for path in parts_of_compiler(folder):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    print(f"{folder}: {before >> 20} MiB -> {size_bytes(folder) >> 20} MiB", flush=True)
    if arguments.split is not None:
        split(folder, *arguments.split)


def slim(folder: Path) -> None:
    """Delete and strip what no step and no server loads."""
    delete_unused(folder)
    stub_never_called(folder)
    for path in sorted(folder.rglob("*")):
        if ".so" in path.name and path.is_file() and not path.is_symlink():
            strip(path)
    share_copies(folder)


def delete_unmapped(folder: Path) -> None:
    """Delete the CUDA libraries that the loader does not map for `import torch`, like cuDNN's engines: only a GPU needs them."""
    if not (folder / "nvidia").exists():
        return
    mapped = set(mapped_libraries(folder))
    for path in sorted((folder / "nvidia").rglob("*")):
        if path.is_file() and path.resolve() not in mapped:
            path.unlink()


def size_bytes(folder: Path) -> int:
    """Return the size of all files below `folder`."""
    return sum(path.lstat().st_size for path in folder.rglob("*") if not path.is_dir())


def delete_unused(folder: Path) -> None:
    """Delete what no step and no server loads."""
    for path in sorted(folder.rglob("*")):
        if path.is_symlink() or not path.exists():
            continue
        inside = place_of(path, folder)
        package, _, name = inside.partition("/")
        if path.is_dir():
            services = path.parent.name == "data" and path.parents[1].name == "botocore" and path.name not in _BOTOCORE
            if path.name in _FOLDERS or inside in _OTHER_SERVICES or services:
                shutil.rmtree(path)
        elif (
            _FILES.fullmatch(path.name)
            or (_SOURCES.fullmatch(path.name) and package not in _COMPILERS)
            or (package == "pyarrow" and _PYARROW.fullmatch(path.name))
            or (package == "torch" and _OF_TORCH.fullmatch(name))
            or (package == "kfp" and name.endswith("_test.py"))
        ):
            path.unlink()


def place_of(path: Path, folder: Path) -> str:
    """Return the path below the folder of packages, which is `folder` or the site-packages in it."""
    return path.relative_to(folder).as_posix().rpartition("site-packages/")[2]


def stub_never_called(folder: Path) -> None:
    """Replace the libraries that have to be there and are never called; a function of one would return 0, like one that finds nothing."""
    from stubs import write_stub  # noqa: PLC0415 - beside this file in the build

    for path in sorted(folder.rglob("*.so.*")):
        for place, symbols in _NEVER_CALLED.items():
            if re.fullmatch(place, place_of(path, folder)) and not path.is_symlink():
                stub = path.with_name(path.name + ".stub")
                write_stub(path, stub, symbols=symbols, returns=0)
                stub.replace(path)


def strip(library: Path) -> None:
    """Remove the symbol table and debugging information of a shared library; what strip would break stays as it is.

    Strip moves the segments of libraries that were changed after linking (those in `*.libs`), so that they cannot be loaded.
    """
    if library.stat().st_size < _STRIP_BYTES or library.read_bytes()[:4] != b"\x7fELF":
        return
    stripped = library.with_name(library.name + ".stripped")
    result = subprocess.run(["strip", "--strip-unneeded", "-o", str(stripped), str(library)], capture_output=True, check=False)
    if result.returncode == 0 and is_aligned(stripped):
        shutil.copystat(library, stripped)
        stripped.replace(library)
    else:
        stripped.unlink(missing_ok=True)


def is_aligned(library: Path) -> bool:
    """Return whether the loader accepts the segments of a 64-bit library."""
    data = library.read_bytes()
    start, entry_bytes, entries = struct.unpack_from("<Q", data, 32)[0], *struct.unpack_from("<HH", data, 54)
    for index in range(entries):
        kind, _, offset, address, _, _, _, alignment = struct.unpack_from("<IIQQQQQQ", data, start + index * entry_bytes)
        if kind == 1 and alignment and (address - offset) % alignment:
            return False
    return True


def share_copies(folder: Path) -> None:
    """Make one file of libraries that a wheel, which has no links, holds under several names of one version: libx.so, libx.so.1."""
    for path in sorted(folder.rglob("*.so")):
        for copy in sorted(path.parent.glob(f"{path.name}.*")):
            if not copy.is_symlink() and path.is_file() and copy.read_bytes() == path.read_bytes():
                copy.unlink()
                copy.symlink_to(path.name)


def split(folder: Path, cpu: Path, gpu: Path) -> None:
    """Move what only a GPU needs from `folder` to `gpu`, and write what torch needs without one into `cpu`."""
    from stubs import write_stub  # noqa: PLC0415 - beside this file in the build

    for library in mapped_libraries(folder):
        target = cpu / library.relative_to(folder)
        if library.stat().st_size >= _STUB_BYTES:
            write_stub(library, target)
        else:
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(library, target)
    only_gpu = [folder / name for name in ("nvidia", "cuda", "triton", "torch/lib/libtorch_cuda_linalg.so")]
    only_gpu += parts_of_compiler(folder)
    only_gpu += [path for pattern in ("nvidia_*", "cuda_*", "triton-*") for path in folder.glob(pattern)]
    for path in filter(Path.exists, only_gpu):
        target = gpu / path.relative_to(folder)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(path, target)
    print(f"for a CPU: {size_bytes(cpu) >> 20} MiB, for a GPU: {size_bytes(gpu) >> 20} MiB", flush=True)


def parts_of_compiler(folder: Path) -> list[Path]:
    """Return the parts of torch in `folder` that the cpu image has no use for."""
    return [path for name in _OF_COMPILER if (path := folder / "torch" / name).exists()]


def mapped_libraries(folder: Path) -> list[Path]:
    """Return the CUDA libraries that the loader maps for `import torch`."""
    program = "import torch; print(open('/proc/self/maps').read())"
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    maps = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True, env=environment).stdout
    paths = {Path(line.rpartition(" ")[2]) for line in maps.splitlines()}
    return sorted(path for path in paths if path.is_relative_to(folder / "nvidia"))


if __name__ == "__main__":
    main()
