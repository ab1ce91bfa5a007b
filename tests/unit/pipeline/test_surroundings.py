"""Odd surroundings: paths with any characters, no name for the user, a shell set up for something else."""

import json
import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
from celebdit_testing.command import COMMAND

from components.runtime.events import EventReader, Events
from components.system.user import user_name
from pipeline.session import git_commit

REPOSITORY = Path(__file__).parents[3]


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


def command_line(*arguments: str, umask: int = -1, **environment: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [*COMMAND, *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        umask=umask,
        env={**os.environ, **environment},
        encoding="utf-8",
        errors="surrogateescape",
    )


@pytest.mark.parametrize(
    "surroundings",
    [
        {"LC_ALL": "C"},
        {"LC_ALL": "POSIX", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"},
        {"LC_ALL": "no_SUCH.locale"},
        {"PYTHONIOENCODING": "ascii"},
        {"TZ": "Pacific/Kiritimati"},
        {"TZ": "no/such/zone"},
        {"HOME": "/proc/nowhere"},
        {"HOME": ""},
        {"COLUMNS": "x"},
        {"TMPDIR": "/proc/nowhere"},
    ],
    ids=str,
)
def test_a_configuration_is_shown_the_same_everywhere(surroundings: dict[str, str], tmp_path: Path) -> None:
    file = tmp_path / "größe.toml"
    file.write_text('base = "smoke"\n[data]\nlicence_accepted_by = "Ada Größe"\n', encoding="utf-8")
    shown, elsewhere = (
        command_line("config", "show", str(file), "--json"),
        command_line("config", "show", str(file), "--json", **surroundings),
    )
    assert shown.returncode == elsewhere.returncode == 0, elsewhere.stderr
    assert elsewhere.stdout == shown.stdout
    text = command_line("config", "show", str(file), **surroundings)
    assert (text.returncode, "Traceback" in text.stderr) == (0, False), text.stderr


@pytest.mark.parametrize("surroundings", [{"LC_ALL": "C"}, {"PYTHONIOENCODING": "ascii"}, {"LC_ALL": "POSIX", "PYTHONUTF8": "0"}], ids=str)
def test_an_error_with_any_characters_is_shown_in_any_locale(surroundings: dict[str, str]) -> None:
    done = command_line("config", "show", "größe\udc80.toml", **surroundings)
    assert done.returncode == 2
    assert "does not exist" in done.stderr
    assert "Traceback" not in done.stderr


def unwritable(folder: Path) -> Path:
    """A place that nobody can write to, root neither."""
    assert not folder.exists()
    return Path("/proc/self/nowhere")


@pytest.mark.parametrize("arguments", [["ui"], ["models", "list"], ["run", "smoke"], ["ingest", "--source", "synthetic://?count=4"]])
def test_a_home_that_cannot_be_written_is_bad_input(arguments: list[str], tmp_path: Path) -> None:
    done = command_line(*arguments, "--home", str(unwritable(tmp_path / "none")))
    assert done.returncode == 2
    assert "cannot be" in done.stderr
    assert "Traceback" not in done.stderr


FULL = """
import pipeline.commands.config as config
from components.system.scratch import temporary_folder
from pipeline import cli

def show(*_, **__):
    with temporary_folder() as folder:
        (folder / "file").write_bytes(b"x" * 90_000)

config.preset_names = show
cli.main(["config", "presets"])
"""


def test_a_temporary_folder_that_is_full_is_named(tmp_path: Path) -> None:
    if os.getuid() != 0:
        pytest.skip("only root can mount a small file system")
    small, script = tmp_path / "small", tmp_path / "show.py"
    small.mkdir()
    script.write_text(FULL)
    line = 'mount -t tmpfs -o size=32k none "$1" && TMPDIR="$1" PYTHONPATH="$2" "$3" "$4"'
    command = ["unshare", "--mount", "sh", "-c", line, "sh", str(small), str(REPOSITORY), sys.executable, str(script)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    if done.stderr.startswith(("unshare:", "mount:")):
        pytest.skip(f"no file system can be mounted here: {done.stderr.splitlines()[0]}")
    assert done.returncode == 75, done.stderr
    assert "No space left on device" in done.stderr
    assert "Traceback" not in done.stderr


def test_files_of_a_strict_umask_can_be_read_again(tmp_path: Path) -> None:
    out = tmp_path / "faces.yaml"
    for mask in (0o077, 0o000):
        done = command_line("compile", "demo", "-o", str(out), "--images", str(_images(tmp_path)), umask=mask)
        assert done.returncode == 0, done.stderr
        assert out.stat().st_mode & 0o777 & mask == 0
        assert "pipelineInfo" in out.read_text()


def _images(folder: Path) -> Path:
    path = folder / "images.lock.json"
    images = {name: f"registry.example/{name}@sha256:{'a' * 64}" for name in ("cpu", "gpu")}
    path.write_text(json.dumps({"images": images, "git_commit": "c", "pins_sha256": {}}))
    return path


def test_a_clock_that_jumps_changes_neither_progress_nor_waiting(tmp_path: Path) -> None:
    times = iter([1e9, 4e9, 1e9 - 86400, 1e9 + 1])
    now = [next(times)]
    events = Events("train", tmp_path / "events.jsonl", clock=lambda: now[0])
    for done, at_s in enumerate([*times, -1e6, 5e9]):
        now[0] = at_s
        events.progress(done, 10)
    events.progress(10, 10)
    reported = [event.facts["done"] for event in EventReader(tmp_path / "events.jsonl").read()]
    assert reported[-1] == 10
    assert len(reported) > 3, "a clock that went back does not silence the step"


def test_a_home_that_is_not_utf_8_is_refused_before_anything_starts(tmp_path: Path) -> None:
    home = os.fsencode(tmp_path) + b"/\xff\xfe"
    done = subprocess.run([*COMMAND, "services", "up", b"--home", home], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 2, done.stderr
    assert "cannot be read as UTF-8" in done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


SERVERS = {"CELEBDIT_STORE": "s3://bucket/x", "MLFLOW_TRACKING_URI": "http://127.0.0.1:9", "AWS_ENDPOINT_URL": "http://127.0.0.1:9"}


@pytest.mark.parametrize("servers", [{}, SERVERS], ids=["embedded", "own"])
def test_an_experiment_that_mlflow_cannot_store_is_refused_before_anything_starts(servers: dict[str, str], tmp_path: Path) -> None:
    environment = {**os.environ, **servers, "CELEBDIT_EXPERIMENT": "x" * 700}
    command = [*COMMAND, "models", "list", "--home", str(tmp_path / "home")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, timeout=60)
    assert done.returncode == 2, done.stderr
    assert "CELEBDIT_EXPERIMENT has 700 characters" in done.stderr
    assert not (tmp_path / "home").exists()


def test_warnings_that_a_shell_turns_into_errors_end_no_command() -> None:
    warn = "lambda: warnings.warn('an old name', DeprecationWarning, stacklevel=1)"
    code = f"import warnings, pipeline.cli as line; line._require_current_folder = {warn}; line.main(['config', 'presets'])"
    environment = {**os.environ, "PYTHONWARNINGS": "error", "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=environment, timeout=60)
    assert (done.returncode, "smoke" in done.stdout) == (0, True), done.stderr
    assert "DeprecationWarning: an old name" in done.stderr


def test_a_process_that_samples_leaves_nothing_under_a_name_that_others_can_guess(tmp_path: Path) -> None:
    code = "import sys; from pathlib import Path; from pipeline.session import Session; Session(Path(sys.argv[1]), None).context()"
    code += "; import torch._dynamo.package, os; print(os.listdir(os.environ['TMPDIR']))"
    (tmp_path / "tmp").mkdir()
    environment = {**os.environ, **SERVERS, "TMPDIR": str(tmp_path / "tmp"), "PYTHONPATH": str(REPOSITORY)}
    environment = {name: value for name, value in environment.items() if name not in ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR")}
    command = [sys.executable, "-c", code, str(tmp_path / "home")]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment, timeout=120)
    assert done.stdout.splitlines()[-1] == "[]"
    assert (tmp_path / "home" / "work" / "compiled" / "inductor").is_dir(), "torch made the folder of its cache"


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="no folder that nobody can write")
@pytest.mark.parametrize("command", [["sample", "0" * 16], ["compare", "0" * 16, "1" * 16]])
def test_a_place_where_no_file_can_be_made_is_refused_before_anything_starts(command: list[str], tmp_path: Path) -> None:
    line = [*COMMAND, *command, "--out", "/proc/x.png", "--home", str(tmp_path / "home")]
    done = subprocess.run(line, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 2, done.stderr
    assert "/proc cannot be written" in done.stderr
    assert not (tmp_path / "home").exists(), "no server was started"
