"""Help pages: every command ends with an example, and every example is a command line that parses."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from pipeline.cli import cli, main
from pipeline.config import load_config


def command_paths(command: click.Command, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Yield the names that lead to every command, groups included."""
    yield path
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            child = command.get_command(context, name)
            assert child is not None
            yield from command_paths(child, (*path, name))


def command_at(path: tuple[str, ...]) -> click.Context:
    context = click.Context(cli, info_name="celebdit")
    for name in path:
        assert isinstance(context.command, click.Group)
        child = context.command.get_command(context, name)
        assert child is not None
        context = click.Context(child, info_name=name, parent=context)
    return context


def parsed(command_line: str) -> click.Context:
    """Return the context of the command that `command_line` runs, after click has checked its options; nothing is run."""
    program, *arguments = shlex.split(re.split(r" [|>] ", command_line)[0])
    assert program == "celebdit"
    command, context = cli, None
    while True:
        context = command.make_context(command.name, arguments, parent=context)
        if not isinstance(command, click.Group):
            return context
        _, child, arguments = command.resolve_command(context, [*context._protected_args, *context.args])
        assert child is not None
        command = child


@pytest.mark.parametrize("path", command_paths(cli), ids=" ".join)
def test_every_help_page_ends_with_an_example_that_parses(path: tuple[str, ...]) -> None:
    page = command_at(path).get_help()
    heading, line = page.rstrip().splitlines()[-2:]
    assert heading.strip() == "Example:"
    assert shlex.split(line)[: len(path) + 1] == ["celebdit", *path]
    context = parsed(line.strip())
    preset = context.params.get("preset")
    if preset is not None and Path(preset).suffix != ".toml":
        load_config(preset, context.params["overrides"])


@pytest.mark.parametrize("path", command_paths(cli), ids=" ".join)
def test_every_option_has_a_help_text(path: tuple[str, ...]) -> None:
    command = command_at(path).command
    assert [option.name for option in command.params if isinstance(option, click.Option) and not option.help] == []


@pytest.mark.parametrize(("shown", "other"), [("license", "licence"), ("accept-license", "accept-licence"), ("steps", "num-steps")])
def test_an_option_with_two_spellings_takes_both_and_shows_one(shown: str, other: str, capsys: pytest.CaptureFixture[str]) -> None:
    options = {path: {name for option in command_at(path).command.params for name in option.opts} for path in command_paths(cli)}
    having = [path for path, names in options.items() if f"--{shown}" in names]
    assert len(having) > 1
    assert not [path for path, names in options.items() if f"--{other}" in names], "its help shows both"
    for path in having:
        for spelling in (shown, other):
            with pytest.raises(SystemExit):
                main([*path, f"--{spelling}", "7", "--unknown"])
            assert "No such option '--unknown'" in capsys.readouterr().err


@pytest.mark.parametrize("group", [[], ["models"], ["services"], ["config"]])
def test_a_command_that_is_missing_is_asked_for_in_one_line(group: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(group)
    assert ended.value.code == 2
    name = " ".join(["celebdit", *group])
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith(f"celebdit: {name} needs a command: ")
    assert lines[1:] == [f"  see {name} --help"]
