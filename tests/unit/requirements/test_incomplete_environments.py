"""What the installer takes for a whole environment: the folder's own interpreter, and packages with all that they list."""

import os
import subprocess
import sys
import zipfile
from collections.abc import Callable
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import pytest
from celebdit_testing.wheels import make_wheel

REPOSITORY = Path(__file__).parents[3]
PACKAGES = f"lib/python{sys.version_info.major}.{sys.version_info.minor}/site-packages"


@pytest.fixture(scope="module")
def installer() -> ModuleType:
    """`requirements/install.py`, which lies outside of every package."""
    specification = spec_from_file_location("install", REPOSITORY / "requirements" / "install.py")
    assert specification is not None
    assert specification.loader is not None
    module = module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def unpacked(folder: Path) -> Path:
    """Unpack a wheel as an installer does, and return the folder of packages."""
    make_wheel(folder, "standin", {"standin/__init__.py": "VALUE = 7\n", "standin/data.txt": "text\n" * 9})
    with zipfile.ZipFile(folder / "standin-1.0-py3-none-any.whl") as archive:
        archive.extractall(folder / ".venv" / PACKAGES)
    return folder / ".venv" / PACKAGES


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def compile_and_leave_out(path: Path) -> None:
    record = path.parents[1] / "standin-1.0.dist-info" / "RECORD"
    record.write_text(f"{record.read_text()}standin/__pycache__/absent.pyc,,\n")


@pytest.mark.parametrize(
    ("name", "change", "is_broken"),
    [
        ("standin-1.0.dist-info/METADATA", Path.unlink, True),
        ("standin-1.0.dist-info/RECORD", Path.unlink, True),
        ("standin-1.0.dist-info/RECORD", lambda path: path.write_bytes(path.read_bytes()[:60]), True),
        ("standin-1.0.dist-info/RECORD", lambda path: path.write_bytes(b""), True),
        ("standin/data.txt", Path.unlink, True),
        ("standin/data.txt", cut, True),
        ("standin/__init__.py", lambda path: path.write_bytes(b""), True),
        ("standin/data.txt", lambda path: path.write_text("text\n" * 10), False),
        ("standin/__init__.py", compile_and_leave_out, False),
        ("standin-1.0.dist-info/WHEEL", cut, False),
        ("standin/data.txt", lambda path: None, False),
    ],
)
def test_a_package_is_broken_without_its_metadata_or_with_a_file_missing_or_cut_off(
    tmp_path: Path, installer: ModuleType, name: str, change: Callable[[Path], object], is_broken: bool
) -> None:
    change(unpacked(tmp_path) / name)
    assert installer.broken_packages(tmp_path / ".venv") == (["standin-1.0"] if is_broken else [])


def executable(path: Path, script: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


def test_a_whole_interpreter_in_the_folder_is_not_a_virtual_environment(tmp_path: Path, installer: ModuleType) -> None:
    venv = tmp_path / ".venv"
    executable(venv / "bin" / "python", f"echo '{venv}'")  # as the Python of conda, or one that was compiled into the folder
    assert not installer.is_own(venv)
    (venv / "pyvenv.cfg").touch()
    assert installer.is_own(venv)


def test_an_environment_that_lost_its_configuration_during_the_installation_is_not_complete(
    tmp_path: Path, installer: ModuleType, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    venv = tmp_path / ".venv"
    subprocess.run([os.path.realpath(sys.executable), "-m", "venv", "--without-pip", str(venv)], check=True)
    executable(venv / "bin" / "uv", f"rm -f '{venv}/pyvenv.cfg'")
    assert installer.is_whole(venv)
    monkeypatch.setattr(installer, "TRIES", 1)
    assert installer.install_whole(venv, ["run"], editable=False) == 2
    assert not (venv / "pyvenv.cfg").exists(), "it was lost during the installation"
    assert (venv / ".incomplete").exists(), "the next installation makes it again"
    assert "cannot be made whole" in capfd.readouterr().err


@pytest.mark.parametrize("kept", ["files alone", "the interpreter below"])
def test_no_folder_is_deleted_that_is_not_a_virtual_environment(
    tmp_path: Path, installer: ModuleType, kept: str, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "thesis.txt").write_text("years of work")
    if kept == "the interpreter below":
        executable(folder / "bin" / "python", f"echo '{folder}'")
    with pytest.raises(SystemExit) as ended:
        installer.install_whole(folder, [], editable=False)
    assert ended.value.code == 2
    assert (folder / "thesis.txt").read_text() == "years of work"
    assert f"{folder} is not a virtual environment" in capfd.readouterr().err
