"""Ranks that are forked: they run as `python -m` does, and how each ended by itself is reported."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).parents[4]
RANK = """
import json, os, signal, sys, time
from pathlib import Path

folder, case, number = Path(sys.argv[1]), sys.argv[2], os.environ["RANK"]

def save(*_):
    folder.joinpath(f"{case}-saved-{number}").touch()
    raise SystemExit(75)

places = [os.environ[name] for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")]
facts = {"name": __name__, "place": places, "leads": os.getsid(0) == os.getpid(), "term": str(signal.getsignal(signal.SIGTERM))}
facts |= {"argv": sys.argv[1:], "forked": "components.runtime.forked_ranks" in sys.modules, "folder": os.getcwd(), "path": sys.path}
folder.joinpath(f"{case}-{number}.json").write_text(json.dumps(facts))
if case == "end":
    raise SystemExit(0)
signal.signal(signal.SIGTERM, signal.SIG_IGN if case == "ignore" else save)
folder.joinpath(f"{case}-ready-{number}").touch()
while len(list(folder.glob(f"{case}-ready-*"))) < 2:
    time.sleep(0.01)
if number == "1" and case in ("killed", "both"):
    os.kill(os.getpid(), signal.SIGKILL)
if number == "0" and case in ("fails", "ignore", "both"):
    os._exit(3)
if number == "0" and case == "stopped":
    os.kill(os.getppid(), signal.SIGTERM)
time.sleep(60)
"""
AGENT = """
import json, multiprocessing, os, sys, threading
from components.runtime import forked_ranks

assert forked_ranks.can_fork()
seen = {}
left = {}
for case in ("end", "killed", "fails", "ignore", "stopped"):
    try:
        seen[case] = forked_ranks.run_forked("ranks", [sys.argv[1], case], processes=2, grace_s=1.0 if case == "ignore" else 30.0)
    except forked_ranks.Stopped as error:
        seen[case] = error.number
    left[case] = len(multiprocessing.active_children())
forks, fork = [], os.fork

def fork_once():
    forks.append(None)
    if len(forks) > 1:
        raise BlockingIOError(11, "Resource temporarily unavailable")
    return fork()

os.fork = fork_once
try:
    forked_ranks.run_forked("ranks", [sys.argv[1], "no room"], processes=2, grace_s=1.0)
except BlockingIOError as error:
    seen["no room"] = error.strerror
left["no room"] = len(multiprocessing.active_children())
seen["left"] = left
held = threading.Event()
threading.Thread(target=held.wait).start()
seen["with a thread"] = forked_ranks.can_fork()
held.set()
print(json.dumps(seen))
"""


@pytest.fixture(scope="module")
def launched(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """The folder in which ranks note what they see, and what their agent reported for each case."""
    if not sys.platform.startswith("linux"):
        pytest.skip("ranks are forked on Linux alone")
    folder = tmp_path_factory.mktemp("ranks")
    (folder / "ranks.py").write_text(RANK)
    (folder / "agent.py").write_text(AGENT)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(REPOSITORY), str(folder)]), "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-P", str(folder / "agent.py"), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, timeout=120, cwd=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder, json.loads(done.stdout.splitlines()[-1])


def test_a_forked_rank_runs_its_module_as_a_program_at_its_place(launched: tuple[Path, dict[str, Any]]) -> None:
    folder, reported = launched
    assert reported["end"] == {}
    for number in ("0", "1"):
        rank = json.loads((folder / f"end-{number}.json").read_text())
        assert rank["forked"], "it did not start an interpreter of its own"
        assert (rank["name"], rank["place"], rank["argv"]) == ("__main__", [number, number, "2", "2"], [str(folder), "end"])
        assert (rank["leads"], rank["folder"], rank["term"]) == (True, str(folder), str(signal.Handlers.SIG_DFL))
        assert "" not in rank["path"]


def test_only_ranks_that_ended_by_themselves_are_reported_and_the_others_save(launched: tuple[Path, dict[str, Any]]) -> None:
    folder, reported = launched
    assert (reported["killed"], reported["fails"]) == ({"1": -signal.SIGKILL}, {"0": 3})
    assert (folder / "killed-saved-0").exists()
    assert (folder / "fails-saved-1").exists()


def test_a_rank_that_ignores_the_request_to_stop_is_killed(launched: tuple[Path, dict[str, Any]]) -> None:
    folder, reported = launched
    assert reported["ignore"] == {"0": 3}
    assert (folder / "ignore-ready-1").exists()
    assert not (folder / "ignore-saved-1").exists()
    assert not any(reported["left"].values()), "no rank is left running in any case"


def test_a_signal_to_the_agent_lets_all_ranks_save(launched: tuple[Path, dict[str, Any]]) -> None:
    folder, reported = launched
    assert reported["stopped"] == signal.SIGTERM
    assert {path.name for path in folder.glob("stopped-saved-*")} == {"stopped-saved-0", "stopped-saved-1"}


def test_a_rank_that_cannot_be_forked_leaves_none_of_the_others(launched: tuple[Path, dict[str, Any]]) -> None:
    _, reported = launched
    assert reported["no room"] == "Resource temporarily unavailable"
    assert reported["left"]["no room"] == 0


def test_nothing_is_forked_beside_a_thread(launched: tuple[Path, dict[str, Any]]) -> None:
    assert launched[1]["with a thread"] is False
