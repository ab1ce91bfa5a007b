"""Odd surroundings: paths with any characters, no name for the user, a shell set up for something else."""

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from components.system.user import user_name
from pipeline.session import git_commit

REPOSITORY = Path(__file__).parents[3]
ODD_NAMES = ["a b", "it's", "100%20", "what?", "a#b", "größe", "semi;colon $HOME"]


def interpreter_in(folder: Path) -> Path:
    """A virtual environment in `folder` with the packages of this one."""
    packages = Path(sysconfig.get_path("purelib"))
    (folder / "bin").mkdir(parents=True)
    (folder / "lib").mkdir()
    (folder / "bin" / "python").symlink_to(os.path.realpath(sys.executable))
    (folder / "lib" / packages.parent.name).symlink_to(packages.parent)
    (folder / "pyvenv.cfg").write_text(f"home = {Path(os.path.realpath(sys.executable)).parent}\n")
    return folder / "bin" / "python"


STEP = """
import sys
from kfp import dsl, local
from pipeline.local import quote_interpreter

@dsl.component(install_kfp_package=False)
def interpreter() -> str:
    import sys
    return sys.executable

quote_interpreter()
local.init(local.SubprocessRunner(use_venv=False), pipeline_root=sys.argv[1])
print(interpreter().output)
"""


@pytest.mark.parametrize("name", ["a b", "it's $HOME; (x)"])
def test_a_step_runs_with_an_interpreter_at_any_path(name: str, tmp_path: Path) -> None:
    python = interpreter_in(tmp_path / name)
    script = tmp_path / "step.py"
    script.write_text(STEP)
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    command = [str(python), str(script), str(tmp_path / "root")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1] == str(python)


@pytest.fixture
def other_repository(tmp_path: Path) -> Path:
    folder = tmp_path / "other"
    folder.mkdir()
    for arguments in (["init", "-q"], ["-c", "user.name=a", "-c", "user.email=a@b", "commit", "-q", "--allow-empty", "-m", "x"]):
        subprocess.run(["git", "-C", str(folder), *arguments], check=True, env=_without_git())
    return folder


def _without_git() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}


@pytest.mark.skipif(not (REPOSITORY / ".git").exists(), reason="the tests do not run in a checkout")
@pytest.mark.parametrize(
    "variables", [("GIT_DIR",), ("GIT_DIR", "GIT_WORK_TREE"), ("GIT_WORK_TREE",), ("GIT_INDEX_FILE",), ("GIT_COMMON_DIR",)]
)
def test_the_recorded_commit_is_that_of_the_code(
    variables: tuple[str, ...], other_repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    places = {"GIT_WORK_TREE": other_repository, "GIT_INDEX_FILE": other_repository / "no-index"}
    expected = git_commit()
    assert expected is not None
    git = ["git", "-C", str(REPOSITORY), "status", "--porcelain", "--untracked-files=no"]
    undisturbed = subprocess.run([*git], capture_output=True, text=True, check=False, env=_without_git())
    for name in variables:
        monkeypatch.setenv(name, str(places.get(name, other_repository / ".git")))
    disturbed = subprocess.run([*git], capture_output=True, text=True, check=False)
    head = subprocess.run(["git", "-C", str(REPOSITORY), "rev-parse", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()
    changed = disturbed.stdout != undisturbed.stdout or disturbed.returncode != 0 or head != expected.removesuffix("-dirty")
    assert changed, "the variables lead git elsewhere"
    assert git_commit() == expected


def test_a_user_without_a_name_is_recorded_by_number() -> None:
    if os.getuid() != 0:
        pytest.skip("only root can become a user without an entry in the password file")
    script = "import os, sys; os.setuid(54321); from components.system.user import user_name; print(user_name())"
    environment = {name: value for name, value in os.environ.items() if name not in ("LOGNAME", "USER", "LNAME", "USERNAME")}
    script = f"import sys; sys.path.insert(0, {str(REPOSITORY)!r}); import components.system.user; {script}"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, env=environment)
    assert done.stdout == "uid 54321\n", done.stderr


def test_a_user_with_a_name_is_recorded_by_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOGNAME", "ada")
    assert user_name() == "ada"
