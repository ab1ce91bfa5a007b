"""An empty argument or option, as of a shell variable that is not set, is refused by every command with one line and exit code 2."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
from celebdit_testing.submissions import run_cli

from pipeline.cli import cli


def commands(command: click.Command, *names: str) -> Iterator[tuple[list[str], click.Command]]:
    """All commands below `command`, with the words that call them."""
    if not isinstance(command, click.Group):
        yield list(names), command
        return
    context = click.Context(command)
    for name in command.list_commands(context):
        below = command.get_command(context, name)
        assert below is not None
        yield from commands(below, *names, name)


def words_for(command: click.Command, empty: click.Parameter) -> list[str]:
    """The arguments and options that a command needs, each with some value, and one with none."""
    words = []
    for parameter in command.params:
        if parameter is not empty and not parameter.required:
            continue
        value = "" if parameter is empty else "0.1" if parameter.type is click.FLOAT else "x"
        words += [] if isinstance(parameter, click.Argument) else [max(parameter.opts, key=len)]
        words += [value] * max(parameter.nargs, 1)
    return words


def texts() -> list[Any]:
    """Each argument and option of a command that takes a text, and the words with which it is empty."""
    return [
        pytest.param([*names, *words_for(command, parameter)], id=" ".join([*names, parameter.name or ""]))
        for names, command in commands(cli)
        for parameter in command.params
        if isinstance(parameter, click.Argument) or not (parameter.is_flag or parameter.count)  # type: ignore[attr-defined]
    ]


@pytest.mark.parametrize("words", texts())
def test_an_empty_word_is_refused_by_every_command_before_anything_is_asked(
    words: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Nothing is listening at the endpoint: a command that asked it would end with 75."""
    monkeypatch.setenv("KF_PIPELINES_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("CELEBDIT_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)  # an empty path would be the current folder
    code, out, err = run_cli(capsys, *words)
    first, *rest = err.strip().splitlines()
    assert (code, out, len(rest)) == (2, "", 1), err
    assert "''" in first or "empty" in first, first
    assert list(tmp_path.iterdir()) == []
