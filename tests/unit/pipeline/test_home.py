"""The folder for local state: nobody else can enter it, or hold its locks."""

import ast
import fcntl
import importlib
import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from celebdit_testing.strangers import STRANGER, as_stranger, public_folder, start_stranger

from components.errors import BadInput
from pipeline.home import LOCK, USERS, hold_lock, make_home
from pipeline.service_users import ServiceUsers
from pipeline.session import open_session

REPOSITORY = Path(__file__).parents[3]
READ = """
import json, sys
from pathlib import Path
home, read = Path(sys.argv[1]), []
for path in [home, *(home / name for name in ("mlflow.db", "services.lock", "logs/mlflow.log"))]:
    try:
        read.append([str(entry) for entry in path.iterdir()] if path.is_dir() else path.open().read())
    except PermissionError:
        pass
print(json.dumps(read))
"""
HOLD = """
import fcntl, sys
file = open(sys.argv[1])
fcntl.flock(file, fcntl.LOCK_EX)
print("held", flush=True)
sys.stdin.readline()
"""


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture
def public() -> Iterator[Path]:
    with public_folder() as folder:
        yield folder


def old_home(folder: Path) -> Path:
    """A home of an earlier version: open, with what a stranger would look for."""
    home = folder / ".celebdit"
    for path in (home, home / "logs"):
        path.mkdir(mode=0o755)
    for name in ("mlflow.db", LOCK, USERS, "services.json", "logs/mlflow.log"):
        (home / name).write_text("secret")
        (home / name).chmod(0o644)
    return home


def test_a_new_home_is_private_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        make_home(tmp_path / "a" / "home")
        with hold_lock(tmp_path / "a" / "home" / LOCK):
            assert mode(tmp_path / "a" / "home" / LOCK) == 0o600
    finally:
        os.umask(before)
    assert mode(tmp_path / "a" / "home") == 0o700
    assert mode(tmp_path / "a") == 0o755, "else another user could put a folder of its own in the place of the home"


def test_an_older_home_is_closed_with_everything_in_it(tmp_path: Path) -> None:
    home = old_home(tmp_path)
    make_home(home)
    assert mode(home) == mode(home / "logs") == 0o700
    assert {mode(home / name) for name in ("mlflow.db", LOCK, USERS, "services.json")} == {0o600}


def entries_of_home(module: Path) -> Iterator[str]:
    """The entries of a home that the code in `module` names: `home / "runs"`, `home.absolute() / f"{name}"`, `self.home / LOCK`."""
    source = module.read_text()
    for node in ast.walk(ast.parse(source if "home" in source else "")):
        if not (isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div)):
            continue
        match ast.unparse(node.left).removeprefix("self.").removeprefix("services.").removesuffix(".absolute()"), node.right:
            case "home", ast.Constant(str() as name):
                yield name
            case "home", ast.Name(constant):
                yield getattr(importlib.import_module(".".join(module.relative_to(REPOSITORY).with_suffix("").parts)), constant)
            case "home", other:
                raise AssertionError(f"{module}: write the name of the entry of home out, not {ast.unparse(other)}")


def test_every_entry_that_the_program_makes_in_a_home_is_known_as_its_own(tmp_path: Path) -> None:
    used = {name.split("/")[0] for module in (REPOSITORY / "pipeline").rglob("*.py") for name in entries_of_home(module)}
    assert {"s3", "runs", "mlflow.db", "services.lock", "sweeps", "mlflow-port"} < used, "the search finds them"
    for name in used - {".gitignore"}:
        home = tmp_path / f"home-{name}"
        home.mkdir(mode=0o755)
        (home / name).mkdir(mode=0o755)
        make_home(home)
        assert mode(home) == mode(home / name) == 0o700, name


def test_a_stranger_reads_an_older_home_until_it_is_closed(public: Path) -> None:
    home = old_home(public)
    assert len(as_stranger(READ, str(home))) == 4, "the stranger can read what is open"
    make_home(home)
    assert as_stranger(READ, str(home)) == []


def test_files_of_others_are_not_changed(tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    folder.chmod(0o755)
    (folder / "cat.png").write_text("x")
    with pytest.raises(BadInput, match="open to other users"):
        make_home(folder)
    assert mode(folder) == 0o755
    shared = tmp_path / "tmp"
    shared.mkdir()
    shared.chmod(0o1777)
    with pytest.raises(BadInput, match="shared with other users"):
        make_home(shared)
    assert mode(shared) == 0o1777


def test_a_home_of_another_user_is_refused(public: Path) -> None:
    home = old_home(public)
    if os.geteuid() != 0:
        pytest.skip("only root can give a folder away")
    os.chown(home, STRANGER, STRANGER)
    with pytest.raises(BadInput, match=f"belongs to another user \\(uid {STRANGER}\\)"):
        make_home(home)


@pytest.mark.parametrize("name", [LOCK, USERS])
@pytest.mark.parametrize("kind", [fcntl.LOCK_EX, fcntl.LOCK_SH])
@pytest.mark.timeout(20)
def test_a_lock_that_a_stranger_took_while_the_home_was_open_does_not_hold_us_up(public: Path, name: str, kind: int) -> None:
    home = old_home(public)
    with start_stranger(HOLD, str(home / name)) as stranger:
        assert stranger.stdout is not None
        assert stranger.stdout.readline() == "held\n"
        make_home(home)
        with hold_lock(home / name, kind):
            assert stranger.poll() is None, "it still holds the file that it opened"
        stranger.communicate("\n")


def test_a_lock_of_our_own_is_waited_for(tmp_path: Path) -> None:
    path = tmp_path / LOCK
    path.touch()
    with subprocess.Popen([sys.executable, "-c", HOLD, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        waiting = subprocess.Popen(
            [
                sys.executable,
                "-c",
                "import sys; from pathlib import Path; from pipeline.home import hold_lock\nwith hold_lock(Path(sys.argv[1])): pass",
                str(path),
            ]
        )
        with pytest.raises(subprocess.TimeoutExpired):
            waiting.wait(2)
        other.communicate("\n")
        assert waiting.wait(20) == 0


def test_a_dead_user_of_the_servers_is_forgotten(tmp_path: Path) -> None:
    make_home(tmp_path / "home")
    users = ServiceUsers(tmp_path / "home")
    code = f"""
import sys
from pathlib import Path
from pipeline.service_users import ServiceUsers
from pipeline.session import open_session
with ServiceUsers(Path({str(tmp_path / "home")!r})).register("run other-1"):
    print("joined", flush=True)
    sys.stdin.readline()
"""
    with (
        subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other,
        users.register("run mine-1"),
    ):
        assert other.stdout is not None
        assert other.stdout.readline() == "joined\n"
        assert sorted(users.names()) == [f"run mine-1 (process {os.getpid()})", f"run other-1 (process {other.pid})"]
        other.kill()
        other.wait()
        assert users.names() == [f"run mine-1 (process {os.getpid()})"]
    assert users.names() == []
    assert list((tmp_path / "home" / "users").iterdir()) == []


def test_commands_on_servers_of_their_own_do_without_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CELEBDIT_STORE", "s3://bucket/x")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    with open_session(Path("/dev/null/home")) as session:
        assert session.services is None
    old = old_home(tmp_path)
    with open_session(old):
        assert mode(old) == 0o700
    shared = tmp_path / "shared"
    shared.mkdir()
    (shared / "x").touch()
    shared.chmod(0o777)
    with pytest.raises(BadInput, match="open to other users"), open_session(shared):
        pass
