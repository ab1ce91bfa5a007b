"""Install pinned packages into the virtual environment of this checkout, and nowhere else. Used by the Makefile.

Promises: an incomplete environment is never used. If it was left half-made by a process that was killed, if its interpreter
is not its own, or if a file of a package is missing after the installation, it is made again from nothing. Whatever happens to the folder
meanwhile, no package reaches the interpreter below. A folder that is not an environment is not deleted. Needs only the standard library.
"""

import argparse
import csv
import fcntl
import os
import shutil
import subprocess
import sys
from pathlib import Path

REQUIREMENTS = Path(__file__).resolve().parent
CHECKOUT = REQUIREMENTS.parent
INCOMPLETE = ".incomplete"
"""A file in the environment while packages are being installed into it."""
OLDEST_PYTHON = (3, 11)
TRIES = 2


def main() -> int:
    """Install, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--venv", type=Path, required=True)
    parser.add_argument("--editable", action="store_true", help="install the project of this checkout too")
    parser.add_argument("names", nargs="*", help="files of requirements/ without their ending; without any, uv alone is installed")
    arguments = parser.parse_args()
    if sys.version_info < OLDEST_PYTHON:
        return fail("Python 3.11 or newer is needed: make PYTHON=python3.12 ...")
    folder = os.open(str(CHECKOUT), os.O_RDONLY)
    fcntl.flock(folder, fcntl.LOCK_EX)  # two makes at once would each take the other's half-made environment for a broken one
    return install_whole(arguments.venv.absolute(), arguments.names, editable=arguments.editable)


def install_whole(venv: Path, names: list, *, editable: bool) -> int:
    """Install until the environment is complete, making it again from nothing if it is not; return the exit code."""
    problems = []
    for _ in range(TRIES):
        if not is_whole(venv):
            make_environment(venv)
        (venv / INCOMPLETE).touch()
        try:
            install(venv, names, editable=editable)
        except (subprocess.CalledProcessError, OSError) as error:
            if is_own(venv) and not broken_packages(venv):
                (venv / INCOMPLETE).unlink(missing_ok=True)  # nothing is half-done, the network is away perhaps
                return fail(f"the packages cannot be installed: {error}")
            continue
        problems = broken_packages(venv)
        if not problems and is_own(venv):
            (venv / INCOMPLETE).unlink()
            return 0
        print(f"packages in {venv} are incomplete ({', '.join(problems[:5])}): making it again", file=sys.stderr)
    return fail(f"{venv} cannot be made whole ({', '.join(problems[:5]) or 'the installation fails'}): run make clean, and make again")


def fail(message: str) -> int:
    """Print why nothing can be installed, and return the exit code."""
    print(message, file=sys.stderr)
    return 2


def is_whole(venv: Path) -> bool:
    """Return whether the environment was left by an installation that ended."""
    return not (venv / INCOMPLETE).exists() and (venv / "bin" / "uv").exists() and is_own(venv)


def is_own(venv: Path) -> bool:
    """Return whether the interpreter in `venv` installs into it; without pyvenv.cfg it is the interpreter below."""
    try:
        prefix = subprocess.run(
            [str(venv / "bin" / "python"), "-I", "-c", "import sys; print(sys.prefix)"], check=True, capture_output=True, text=True
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return False
    return (venv / "pyvenv.cfg").is_file() and os.path.realpath(prefix) == os.path.realpath(venv)


def may_delete(venv: Path) -> bool:
    """Return whether the folder holds an environment, whole or half-made, or nothing: any path may be passed to `make VENV=...`."""
    if venv.name == ".venv" and venv.parent.resolve() == CHECKOUT:
        return True
    if any((venv / mark).exists() for mark in ("pyvenv.cfg", INCOMPLETE)):
        return True
    return not venv.exists() or (venv.is_dir() and not any(venv.iterdir()))


def make_environment(venv: Path) -> None:
    """Make the environment from nothing, with uv in it."""
    if not may_delete(venv):
        raise SystemExit(fail(f"{venv} is not a virtual environment: choose another folder (make VENV=...), or delete it yourself"))
    shutil.rmtree(venv, ignore_errors=True)
    try:
        subprocess.run([sys.executable, "-m", "venv", str(venv)], check=True)
    except subprocess.CalledProcessError:
        raise SystemExit(fail("Python's venv module is needed (Debian and Ubuntu: apt-get install python3-venv)")) from None
    (venv / INCOMPLETE).touch()
    bootstrap = ["install", "--quiet", "--disable-pip-version-check", "--require-hashes", "-r", str(REQUIREMENTS / "bootstrap.txt")]
    command = [str(venv / "bin" / "python"), "-m", "pip", *bootstrap]
    if subprocess.run(command, check=False, env={**os.environ, "PIP_REQUIRE_VIRTUALENV": "1"}).returncode:
        raise SystemExit(fail(f"uv cannot be installed into {venv}"))


def install(venv: Path, names: list, *, editable: bool) -> None:
    """Install the requirements `names`, and the project; with the folder itself as the target, not what its interpreter names."""
    uv = [str(venv / "bin" / "uv"), "pip", "install", "--quiet", "--python", str(venv / "bin" / "python"), "--prefix", str(venv)]
    files = [argument for name in names for argument in ("-r", str(REQUIREMENTS / f"{name}.txt"))]
    pinned = ["--compile-bytecode", "--require-hashes", "--build-constraints", str(REQUIREMENTS / "build.txt")]
    if files:
        subprocess.run([*uv, *pinned, *files], check=True)
    if editable:
        subprocess.run([*uv, "--no-deps", "--no-build-isolation", "-e", str(CHECKOUT)], check=True)


def broken_packages(venv: Path) -> list:
    """Return the names of the installed packages that lack their metadata or a file that they list."""
    installed = sorted(venv.glob("lib/python*/site-packages/*.dist-info"))
    return [information.name.rsplit(".", 1)[0] for information in installed if is_broken(information)]


def is_broken(information: Path) -> bool:
    """Return whether the list of a package's files is missing or cut off, or a file in it is; compiled files do not count."""
    try:
        with (information / "RECORD").open(newline="", encoding="utf-8") as record:
            listed = [row for row in csv.reader(record) if len(row) == 3]
    except OSError:
        return True
    if f"{information.name}/METADATA" not in [name for name, _, _ in listed]:
        return True
    for name, _, size in listed:
        if name.endswith(".pyc") or name.startswith("__editable__"):
            continue
        try:
            actual = (information.parent / name).stat().st_size
        except OSError:
            return True
        # Installers rewrite scripts and the record itself, and people add certificates of their own to those of certifi.
        if size and actual < int(size) and not name.startswith("..") and not name.startswith(information.name):
            return True
    return False


if __name__ == "__main__":
    sys.exit(main())
