"""`make` installs into the environment of the checkout and nowhere else, and heals what a killed installation left.

The checkout is a stand-in with the real Makefile and the real script, wheels of a few bytes and no index.
"""

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
from celebdit_testing.wheels import make_wheel

REPOSITORY = Path(__file__).parents[3]
REAL_UV = Path(sysconfig.get_path("scripts")) / "uv"
BELOW = Path(sys.base_prefix) / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"
pytestmark = [
    pytest.mark.fault,
    pytest.mark.slow,
    pytest.mark.skipif(not REAL_UV.exists() or shutil.which("make") is None, reason="needs make, and uv in this environment"),
]

UV = f"""#!/bin/sh
{REAL_UV} "$@"
code=$?
case "$*" in *pip\\ install*requirements/run.txt*) ;; *) exit $code ;; esac
packages=$(ls -d "{{venv}}"/lib/python*/site-packages)
for damage in $DAMAGE; do
  case $damage in
    metadata) rm "$packages/standin-1.0.dist-info/METADATA" ;;
    record) rm "$packages/standin-1.0.dist-info/RECORD" ;;
    file) rm "$packages/standin/data.txt" ;;
    cut) cp --remove-destination /dev/null "$packages/standin/data.txt" ;;
    kill) kill -9 $PPID ;;
  esac
done
exit $code
"""
BACKEND = """
import sys
sys.path.insert(0, {support!r})
from pathlib import Path
from celebdit_testing.wheels import make_wheel

def build_editable(folder, config_settings=None, metadata_directory=None):
    make_wheel(Path(folder), "project", {{"project.pth": "."}}, version="0.1")
    return "project-0.1-py3-none-any.whl"

build_wheel = build_editable
"""
PROJECT = """
[build-system]
requires = []
build-backend = "backend"
backend-path = ["."]

[project]
name = "project"
version = "0.1"
"""


class Checkout:
    """The stand-in, and how `make` runs in it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.venv = folder, folder / ".venv"
        self.wheels = folder / "wheels"
        (folder / "requirements").mkdir(parents=True)
        self.wheels.mkdir()
        shutil.copy(REPOSITORY / "Makefile", folder)
        shutil.copy(REPOSITORY / "requirements" / "install.py", folder / "requirements")
        uv = make_wheel(self.wheels, "uv", {"uv-1.0.data/scripts/uv": UV.replace("{venv}", str(self.venv))})
        standin = make_wheel(self.wheels, "standin", {"standin/__init__.py": "VALUE = 7\n", "standin/data.txt": "text\n" * 9})
        for name, text in {"bootstrap": uv, "build": "", "run": standin, "dev": standin}.items():
            (folder / "requirements" / f"{name}.txt").write_text(text)
        (folder / "pyproject.toml").write_text(PROJECT)
        (folder / "backend.py").write_text(BACKEND.format(support=str(REPOSITORY / "tests" / "support")))

    def make(self, target: str = ".venv/.run", **environment: str) -> "subprocess.CompletedProcess[str]":
        offline = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": self.wheels.as_uri(), "UV_OFFLINE": "1", "UV_FIND_LINKS": self.wheels.as_uri()}
        offline |= {"UV_NO_INDEX": "1", "UV_CACHE_DIR": str(self.folder / "cache")}
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("UV_", "PIP_", "VIRTUAL_ENV", "MAKE"))}
        python = os.path.realpath(sys.executable)
        command = ["make", "--no-print-directory", f"PYTHON={python}", target]
        return subprocess.run(
            command, cwd=self.folder, env={**kept, **offline, **environment}, capture_output=True, text=True, check=False, timeout=300
        )

    def is_whole(self) -> bool:
        script = "import sys, standin, pathlib; d = pathlib.Path(standin.__file__).with_name('data.txt').read_text(); "
        script += "from importlib.metadata import version; print(sys.prefix, standin.VALUE, len(d), version('standin'), version('project'))"
        done = subprocess.run([str(self.venv / "bin" / "python"), "-c", script], capture_output=True, text=True, check=False)
        return done.stdout.strip() == f"{self.venv} 7 45 1.0 0.1"


def test_an_interpreter_that_installs_elsewhere_is_not_the_environments_own(tmp_path: Path) -> None:
    venv = tmp_path / ".venv"
    script = (
        "import sys; from pathlib import Path; sys.path.insert(0, 'requirements'); import install; print(install.is_own(Path(sys.argv[1])))"
    )

    def is_own() -> str:
        command = [sys.executable, "-c", script, str(venv)]
        return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout.strip()

    assert is_own() == "False", "there is none"
    subprocess.run([os.path.realpath(sys.executable), "-m", "venv", "--without-pip", str(venv)], check=True)
    assert is_own() == "True"
    (venv / "pyvenv.cfg").rename(venv / "kept")
    assert is_own() == "False", "its interpreter is the one below"
    (venv / "kept").rename(venv / "pyvenv.cfg")
    venv.rename(tmp_path / "moved")
    venv.symlink_to(tmp_path / "moved")
    assert is_own() == "True"


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    assert not list(BELOW.glob("standin*")), "the interpreter below has nothing of these tests"
    return Checkout(tmp_path / "check out")


def nothing_reached_the_interpreter_below() -> bool:
    reached = list(BELOW.glob("standin*"))
    for path in reached:
        shutil.rmtree(path)
    return not reached


def test_an_environment_without_its_configuration_is_made_again_and_the_interpreter_below_is_left_alone(checkout: Checkout) -> None:
    done = checkout.make()
    assert done.returncode == 0, done.stderr
    assert checkout.is_whole()
    assert checkout.make().stdout.endswith("is up to date.\n")
    (checkout.venv / "pyvenv.cfg").unlink()
    assert not checkout.is_whole(), "its interpreter is the one below"
    shutil.rmtree(next(checkout.venv.glob("lib/python*/site-packages/standin")))
    assert checkout.make().returncode == 0
    assert nothing_reached_the_interpreter_below()
    assert checkout.is_whole()


def test_even_an_environment_that_loses_its_configuration_during_the_installation_takes_the_packages(checkout: Checkout) -> None:
    assert checkout.make(".venv/bin/uv").returncode == 0
    (checkout.venv / "pyvenv.cfg").unlink()
    script = "import sys; from pathlib import Path; sys.path.insert(0, 'requirements'); import install; "
    script += "install.install(Path('.venv').absolute(), ['run'], editable=False)"
    environment = {**os.environ, "UV_OFFLINE": "1", "UV_NO_INDEX": "1", "UV_FIND_LINKS": checkout.wheels.as_uri()}
    environment["UV_CACHE_DIR"] = str(checkout.folder / "cache")
    done = subprocess.run([sys.executable, "-c", script], cwd=checkout.folder, env=environment, capture_output=True, text=True, check=False)
    assert nothing_reached_the_interpreter_below()
    assert done.returncode != 0 or list(checkout.venv.glob("lib/python*/site-packages/standin/data.txt"))


@pytest.mark.parametrize("damage", ["metadata file", "record cut"])
def test_an_installation_that_was_killed_is_healed_by_the_next(damage: str, checkout: Checkout) -> None:
    killed = checkout.make(DAMAGE=f"{damage} kill")
    assert killed.returncode != 0, "make ended with its installer"
    assert not checkout.is_whole()
    healed = checkout.make()
    assert healed.returncode == 0, healed.stderr
    assert checkout.is_whole()
    assert not (checkout.venv / ".incomplete").exists()


def test_a_package_that_stays_broken_is_never_behind_exit_0(checkout: Checkout) -> None:
    done = checkout.make(DAMAGE="file")
    assert done.returncode != 0
    assert "packages in" in done.stderr
    assert "standin-1.0" in done.stderr
    assert not (checkout.venv / ".run").exists()
    assert checkout.make().returncode == 0
    assert checkout.is_whole()


def test_an_interrupted_clean_is_healed(checkout: Checkout) -> None:
    assert checkout.make().returncode == 0
    for name in (".run", ".dev"):
        (checkout.venv / name).unlink(missing_ok=True)
    shutil.rmtree(next(checkout.venv.glob("lib/python*/site-packages")))
    assert checkout.make().returncode == 0
    assert checkout.is_whole()
