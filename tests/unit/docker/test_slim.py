"""What `docker/Dockerfile` does to installed packages, on single files; tests/integration/test_images.py runs whole images."""

import ctypes
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pillow_heif
import pytest
from PIL import Image

CHECKOUT = Path(__file__).parents[3]
PACKAGES = Path(importlib.util.find_spec("torch").origin).parents[1]  # type: ignore[union-attr, arg-type]
needs_binutils = pytest.mark.skipif(
    any(shutil.which(tool) is None for tool in ("as", "ld", "nm", "readelf", "strip")), reason="binutils are not installed"
)


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"docker_{name}", CHECKOUT / "docker" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def symbols(library: Path) -> set[str]:
    """The names that a library offers, with their versions."""
    listing = subprocess.run(
        ["nm", "-D", "--defined-only", "--with-symbol-versions", str(library)], check=True, capture_output=True, text=True
    ).stdout
    return {line.split()[2] for line in listing.splitlines() if line.split()[1] != "A"}


def loads(library: Path) -> bool:
    code = f"import ctypes; ctypes.CDLL({str(library)!r})"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0


@needs_binutils
@pytest.mark.skipif(not list(PACKAGES.glob("nvidia/*/lib/libcudart.so.*")), reason="torch is installed without CUDA's libraries")
def test_a_stub_has_the_name_and_the_symbols_of_a_library_and_its_functions_fail(tmp_path: Path) -> None:
    (library,) = PACKAGES.glob("nvidia/*/lib/libcudart.so.*")
    stub = tmp_path / "lib" / library.name
    script("stubs").write_stub(library, stub)
    assert symbols(stub) == symbols(library)
    assert f"cudaGetDevice@@{library.name}" in symbols(stub)
    assert stub.stat().st_size < library.stat().st_size / 5
    dynamic = subprocess.run(["readelf", "-d", str(stub)], check=True, capture_output=True, text=True).stdout
    assert f"soname: [{library.name}]" in dynamic
    assert ctypes.CDLL(str(stub)).cudaGetLastError() == 1  # 0 from the library: no call has failed yet


@needs_binutils
def test_symbol_tables_go_and_a_library_that_strip_would_break_stays(tmp_path: Path) -> None:
    """Libraries in `*.libs` were changed after linking."""
    shutil.copytree(PACKAGES / "numpy.libs", tmp_path / "numpy.libs")
    (changed,) = (tmp_path / "numpy.libs").glob("libscipy_openblas*.so")
    plain = Path(shutil.copy(PACKAGES / "torch" / "lib" / "libc10.so", tmp_path))
    broken = changed.with_name("broken.so")
    subprocess.run(["strip", "--strip-unneeded", "-o", str(broken), str(changed)], check=True)
    slim = script("slim")
    for library in (changed, plain):
        slim.strip(library)
    assert loads(broken) == slim.is_aligned(broken)
    assert loads(changed)
    assert plain.stat().st_size < (PACKAGES / "torch" / "lib" / "libc10.so").stat().st_size
    assert ".symtab" not in subprocess.run(["readelf", "-SW", str(plain)], check=True, capture_output=True, text=True).stdout
    assert not list(tmp_path.rglob("*.stripped"))


@pytest.mark.parametrize("place", ["", "python3.11/site-packages/"], ids=["a folder of packages", "the lib folder of an environment"])
def test_only_what_nothing_loads_is_deleted(place: str, tmp_path: Path) -> None:
    deleted = [
        "pandas/tests/test_frame.py",
        "numpy/_core/include/numpy/ndarraytypes.h",
        "nvidia/cu13/lib/libcudart_static.a",
        "pyarrow/libarrow_flight.so.2500",
        "pyarrow/_flight.cpython-311-x86_64-linux-gnu.so",
        "pyarrow/_substrait.cpython-311-x86_64-linux-gnu.so",
        "botocore/data/ec2/2016-11-15/service-2.json.gz",
        "databricks/sdk/service/jobs.py",
        "numpy/__init__.pyi",
        "kfp/compiler/compiler_test.py",
        "torch/bin/protoc",
        "torch/bin/protoc-3.21.12.0",
        "torch/bin/test_api",
        "torch/test/op_registration_test",
        "torch/lib/libtorchbind_test.so",
    ]
    kept = [
        "torch/testing/__init__.py",
        "torch/_inductor/test_operators.py",
        "torch/bin/torch_shm_manager",
        "torch/lib/libtorch_cpu.so",
        "torch/include/torch/torch.h",
        "triton/backends/nvidia/driver.c",
        "rich/protocol.py",
        "google/protobuf/message.py",
        "pyarrow/libarrow.so.2500",
        "pyarrow/libarrow_python.so.2500",
        "pyarrow/libarrow_substrait.so.2500",  # linked by all the others
        "botocore/data/s3/2006-03-01/service-2.json.gz",
        "botocore/data/endpoints.json",
        "databricks/__init__.py",
        "mlflow/server/js/build/static/js/main.js",
    ]
    packages = tmp_path / place
    for name in (*deleted, *kept):
        (packages / name).parent.mkdir(parents=True, exist_ok=True)
        (packages / name).write_text("x")
    script("slim").delete_unused(tmp_path)
    assert [name for name in deleted if (packages / name).exists()] == []
    assert [name for name in kept if not (packages / name).exists()] == []


@needs_binutils
def test_what_is_left_of_arrow_and_of_heic_reads_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With stubs for the libraries that are only linked, and without the flight library."""
    packages = tmp_path / "python3.11" / "site-packages"
    for name in ("pyarrow", "pillow_heif", "pillow_heif.libs"):
        shutil.copytree(PACKAGES / name, packages / name, copy_function=link_or_copy)
    for library in PACKAGES.glob("_pillow_heif*.so"):
        link_or_copy(str(library), str(packages / library.name))
    monkeypatch.syspath_prepend(str(CHECKOUT / "docker"))
    slim = script("slim")
    slim.delete_unused(tmp_path)
    slim.stub_never_called(tmp_path)
    assert not list(packages.rglob("*flight*.so*"))
    for pattern in ("pyarrow/libarrow_substrait.so.*", "pillow_heif.libs/libx265-*.so.*"):
        (stub,) = packages.glob(pattern)
        assert stub.stat().st_size < (PACKAGES / stub.relative_to(packages)).stat().st_size / 5
    pillow_heif.register_heif_opener()
    Image.new("RGB", (64, 64), (200, 120, 40)).save(tmp_path / "image.heic", format="HEIF")
    environment = {**os.environ, "PYTHONPATH": str(packages)}
    command = [sys.executable, "-c", _READS, str(packages), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.stdout == "read\n", done.stderr


_READS = """
import sys, pillow_heif, pyarrow, pyarrow.dataset, pyarrow.parquet
from PIL import Image
packages, folder = sys.argv[1:]
assert pyarrow.__file__.startswith(packages) and pillow_heif.__file__.startswith(packages)
assert packages in open("/proc/self/maps").read()
pyarrow.parquet.write_table(pyarrow.table({"a": [1, 2]}), folder + "/table.parquet", compression="zstd")
assert pyarrow.parquet.read_table(folder + "/table.parquet").num_rows == 2
pillow_heif.register_heif_opener()
red, _, blue = Image.open(folder + "/image.heic").convert("RGB").resize((1, 1)).tobytes()
assert abs(red - 200) < 20 and abs(blue - 40) < 20
pillow_heif.libheif_info()
print("read")
"""


def link_or_copy(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # on another file system
        shutil.copy2(source, target)


def test_make_slim_deletes_what_only_a_gpu_needs_and_nothing_that_torch_maps(tmp_path: Path) -> None:
    environment = tmp_path / ".venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(environment)], check=True)
    (environment / "bin" / "uv").symlink_to(Path(sys.executable).with_name("uv"))
    packages = next(environment.glob("lib/python*/site-packages"))
    files = {
        "nvidia/cublas/lib/libcublas.so.12": "mapped",
        "nvidia/cudnn/lib/libcudnn_engines.so.9": "only for a GPU",
        "numpy/tests/test_x.py": "kept: not of CUDA",
        "torch/__init__.py": "import mmap\nfrom . import cuda\n"
        "file = open(__file__.replace('torch/__init__.py', 'nvidia/cublas/lib/libcublas.so.12'), 'rb')\n"
        "mapped = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)\n",
        "torch/cuda.py": "def is_available():\n    return False\n",
        "triton/__init__.py": "",
        "triton-1.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: triton\nVersion: 1.0\n",
        "triton-1.0.dist-info/RECORD": "triton/__init__.py,,\ntriton-1.0.dist-info/METADATA,,\ntriton-1.0.dist-info/RECORD,,\n",
    }
    for name, text in files.items():
        (packages / name).parent.mkdir(parents=True, exist_ok=True)
        (packages / name).write_text(text)
    (environment / ".run").touch()  # installed
    made = subprocess.run(["make", "slim", f"VENV={environment}"], cwd=CHECKOUT, capture_output=True, text=True, check=False)
    assert made.returncode == 0, made.stdout + made.stderr
    left = {name for name in files if (packages / name).exists()}
    assert left == {"nvidia/cublas/lib/libcublas.so.12", "numpy/tests/test_x.py", "torch/__init__.py", "torch/cuda.py"}


def test_the_layers_have_every_pin_of_both_images_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(CHECKOUT)
    script("layers").main(tmp_path)
    pin = re.compile(r"^\w\S*==\S+.*|^ +--hash=\S+", re.MULTILINE)
    common, torch, cpu, gpu = (pin.findall((tmp_path / f"{layer}.txt").read_text()) for layer in ("common", "torch", "cpu", "gpu"))
    for file, alone in (("cpu.txt", cpu), ("run.txt", gpu)):
        wanted = pin.findall((CHECKOUT / "requirements" / file).read_text())
        got = [line.removesuffix(" \\") for line in (*common, *torch, *alone)]
        assert {line.removesuffix(" \\") for line in wanted} <= set(got)
    names = [line.partition("=")[0] for line in (*common, *cpu, *gpu) if "==" in line]
    assert {name for name in names if name.startswith(("nvidia", "cuda", "triton"))} | ({"torch"} & set(names)) == set()
    assert "psycopg2-binary" in {line.partition("=")[0] for line in cpu}
    assert "scikit-learn" in {line.partition("=")[0] for line in gpu}
