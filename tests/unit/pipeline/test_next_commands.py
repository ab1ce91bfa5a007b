"""Commands that are printed for the user to run next work as printed: they name the folder that the command line named."""

import ast
import shlex
from pathlib import Path

import click
import pytest
from celebdit_testing.command import celebdit_here

from components.errors import TemporaryFailure
from pipeline import commands
from pipeline.cli import cli, main
from pipeline.commands.commands_in_hints import complete_hints
from pipeline.commands.options import cluster_options, home_option, kubeflow_options, next_cluster_command, wait_option
from pipeline.commands.run import demo
from pipeline.home import default_home

_PRINTS = {"print_line", "echo", "secho", "print_once", "confirm"}


def test_a_printed_command_names_the_home_of_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    home = tmp_path / "a home"
    done = celebdit_here("runs", home=home, capture=capsys)
    assert f"run PRESET --home {shlex.quote(str(home))}." in done.err
    done = celebdit_here("plan", "smoke", home=home, capture=capsys)
    assert done.err.rstrip().endswith(f"run smoke --home {shlex.quote(str(home))}")


def test_a_printed_command_names_no_home_that_it_has_without(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CELEBDIT_HOME", str(tmp_path))
    assert default_home() == tmp_path
    with pytest.raises(SystemExit):
        main(["runs"])
    assert "run PRESET. For those of a cluster" in capsys.readouterr().err


def test_a_printed_command_has_the_options_of_the_command_line_that_it_repeats() -> None:
    printed: list[str] = []

    @click.command()
    @wait_option
    @kubeflow_options
    @cluster_options
    def prints(**options: object) -> None:
        printed.append(next_cluster_command("submit smoke", "wait", "images", "cached"))

    prints.main([], standalone_mode=False)
    prints.main(
        ["--wait", "--cache", "ingest", "--images", "my lock.json", "--cache", "train", "--namespace", "team-a"], standalone_mode=False
    )
    assert printed == [
        "celebdit submit smoke",
        "celebdit submit smoke --wait --images 'my lock.json' --cache ingest --cache train --namespace team-a",
    ]


def test_the_command_that_a_plan_of_the_demo_prints_is_one_that_demo_accepts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    done = celebdit_here("plan", "demo", "training.total_steps=20", "--accept-license", "A Person", home=tmp_path, capture=capsys)
    command = shlex.split(done.err.splitlines()[-1].partition("celebdit ")[2])
    assert command == ["demo", "training.total_steps=20", "--home", str(tmp_path)]
    assert demo.make_context("demo", command[1:]).params["overrides"] == ("training.total_steps=20",)


def hint_of(error_hint: str, *words: str) -> str:
    """Return the hint that `celebdit WORDS` prints of an error with `error_hint`."""

    @click.command()
    @home_option
    @kubeflow_options
    def fails(**options: object) -> None:
        raise TemporaryFailure("it failed", hint=error_hint)

    complete_hints(fails)
    complete_hints(fails)
    with pytest.raises(TemporaryFailure) as failure, cli.make_context("celebdit", ["runs"]) as root:
        fails.main(list(words), standalone_mode=False, parent=root)
    return str(failure.value.hint)


@pytest.mark.parametrize(
    ("hint", "completed"),
    [
        ("start it again: celebdit ui", "start it again: celebdit ui --home 'a b'"),
        ("celebdit services down; celebdit ui", "celebdit services down --home 'a b'; celebdit ui --home 'a b'"),
        ("run `celebdit sync 1f2e` when it is back", "run `celebdit sync --home 'a b' 1f2e` when it is back"),
        ("celebdit run or celebdit demo", "celebdit run --home 'a b' or celebdit demo --home 'a b'"),
        (
            "start another run with: celebdit submit --again",
            "start another run with: celebdit submit --endpoint http://u --namespace me --again",
        ),
        ("celebdit models history shows whether", "celebdit models history --home 'a b' shows whether"),
        ("`celebdit models package` writes one", "`celebdit models package --home 'a b'` writes one"),
        ("see celebdit runs X --endpoint http://u --namespace me", "see celebdit runs --home 'a b' X --endpoint http://u --namespace me"),
        ("name a run key as `celebdit run` prints it", "name a run key as `celebdit run` prints it"),
        ("see celebdit --help, or celebdit models", "see celebdit --help, or celebdit models"),
        ("free space in /data/my celebdit runs/logs", "free space in /data/my celebdit runs/logs"),
        ("celebdit demo models/a", "celebdit demo --home 'a b' models/a"),
        ("a run named my-celebdit run, or /opt/celebdit run", "a run named my-celebdit run, or /opt/celebdit run"),
    ],
)
def test_commands_in_hints_get_the_options_of_the_command_line_that_they_take(hint: str, completed: str) -> None:
    assert hint_of(hint, "--home", "a b", "--endpoint", "http://u", "--namespace", "me") == completed
    assert hint_of(hint) == hint


def test_an_error_of_a_command_names_the_home_in_its_hint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    done = celebdit_here("services", "env", home=tmp_path / "home", capture=capsys)
    assert done.code == TemporaryFailure.exit_code
    assert done.err.splitlines()[-1] == f"  start them: celebdit ui --home {tmp_path / 'home'}"


def test_a_printed_command_is_made_by_a_function_that_knows_the_command_line() -> None:
    """No text of `print_line` or `echo` contains a command itself: the option would be forgotten."""
    for path in sorted(Path(commands.__file__).parent.glob("*.py")):
        prints = [
            node
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.Call) and (getattr(node.func, "id", None) or getattr(node.func, "attr", None)) in _PRINTS
        ]
        texts = [part for node in prints for part in ast.walk(node) if isinstance(part, ast.Constant) and isinstance(part.value, str)]
        commands_in_texts = [f"{path.name}:{text.lineno}: {text.value}" for text in texts if "celebdit " in str(text.value)]
        assert not commands_in_texts, "print next_command('WORDS') or next_cluster_command('WORDS')"
