"""Every process of a run ends with it, whichever of them is killed and however."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from celebdit_testing.process_trees import Tree
from celebdit_testing.waiting import wait_until

from components.environment import LIFELINE
from components.system.lifeline import GRACE_S, end_processes_of, hold

SOON_S = GRACE_S + 4.0


@pytest.fixture
def tree(tmp_path: Path) -> Iterator[Tree]:
    tree = Tree(tmp_path)
    yield tree
    tree.end()


@pytest.mark.parametrize("part", ["owner", "guardian"])
def test_a_killed_command_takes_the_run_with_it_even_what_ignores_signals(tree: Tree, part: str) -> None:
    assert len(tree.alive()) == tree.size
    tree.kill(part)
    tree.owner.wait(20)
    wait_until(lambda: not tree.alive(), timeout_s=SOON_S, every_s=0.05)
    assert tree.marked() == 0


@pytest.mark.parametrize("part", ["runner", "step"])
def test_what_is_below_a_killed_process_may_save_and_ends(tmp_path: Path, part: str) -> None:
    tree = Tree(tmp_path, stubborn=False)
    try:
        assert len(tree.alive()) == tree.size
        tree.kill(part)
        assert tree.owner.wait(20) == 0, "the owner is told, and goes on"
        assert tree.alive() == []
        assert (tmp_path / "saved").exists()
    finally:
        tree.end()


def test_a_second_signal_does_not_shorten_the_time_to_save(tmp_path: Path) -> None:
    tree = Tree(tmp_path, stubborn=False)
    try:
        tree.kill("guardian", number=signal.SIGTERM)
        tree.kill("guardian", number=signal.SIGHUP)
        tree.owner.wait(20)
        assert tree.alive() == []
        assert (tmp_path / "saved").exists()
    finally:
        tree.end()


def test_the_owners_process_group_can_be_killed_at_once(tree: Tree) -> None:
    assert len(tree.alive()) == tree.size
    os.killpg(tree.owner.pid, signal.SIGKILL)
    tree.owner.wait(10)
    wait_until(lambda: not tree.alive(), timeout_s=SOON_S, every_s=0.05)


def test_what_watches_the_lifeline_ends_without_guardian_and_owner(tmp_path: Path) -> None:
    tree = Tree(tmp_path, stubborn=False)
    try:
        assert len(tree.alive()) == tree.size
        tree.kill("guardian", "owner")
        tree.owner.wait(10)
        wait_until(lambda: not tree.alive(), timeout_s=SOON_S, every_s=0.05)
    finally:
        tree.end()


def test_what_does_not_watch_it_is_found_and_ended_by_the_next_command(tree: Tree) -> None:
    tree.kill("guardian", "owner")
    tree.owner.wait(10)
    wait_until(lambda: len(tree.alive()) == 2, timeout_s=SOON_S, every_s=0.05)
    assert tree.marked() == 2, "the program of a third party, which ignores SIGTERM, and its child"
    foreign = subprocess.Popen(["sleep", "60"], env={**os.environ, LIFELINE: f"{tree.lifeline}-of-another"})
    try:
        assert end_processes_of(tree.lifeline) == 2
        assert tree.alive() == []
        assert foreign.poll() is None, "the process of another run is left alone"
    finally:
        foreign.kill()
        foreign.wait()


def test_a_stopped_guardian_is_ended_by_the_next_command(tree: Tree) -> None:
    tree.kill("guardian", number=signal.SIGSTOP)
    tree.kill("owner")
    tree.owner.wait(10)
    assert len(tree.alive()) == tree.size - 1, "nothing can end them yet: the lifeline is held"
    assert end_processes_of(tree.lifeline) >= tree.size - 2
    wait_until(lambda: not tree.alive(), timeout_s=20, every_s=0.05)


def test_a_process_that_is_not_below_the_guardian_ends_with_the_lifeline(tmp_path: Path) -> None:
    """As a step in a container, whose parent is the container engine."""
    code = (
        "import sys, time; from pathlib import Path; from components.system.lifeline import watch; "
        "print(watch(Path(sys.argv[1])), flush=True); time.sleep(600)"
    )
    with hold(tmp_path / "lifeline"):
        step = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "lifeline")], stdout=subprocess.PIPE, text=True)
        assert step.stdout is not None
        assert step.stdout.readline() == "True\n"
        assert psutil.Process(step.pid).is_running()
    assert step.wait(5) == -signal.SIGTERM
    step.stdout.close()
