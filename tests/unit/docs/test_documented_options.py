"""Commands, options, settings and make targets that the documents name exist, and their values are accepted."""

import re
import tomllib
from pathlib import Path

import click
import pytest
import tomli_w
from celebdit_testing.documents import GUIDES, ROOT, Block, blocks, command_lines, inline_code

from components.errors import BadInput
from pipeline.cli import cli
from pipeline.config import RunConfig, load_config
from pipeline.config_files import preset_names
from pipeline.sweeps.sweep_file import load_sweep

SCRIPTS = blocks("sh")
REASONS = {"", "skip=cluster", "skip=minutes", "skip=server", "skip=input", "skip=demo"}
CONFIGURED = ("run", "submit", "schedule", "compile", "config show")
TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
SECTIONS = {name: set(field.annotation.model_fields) for name, field in RunConfig.model_fields.items()}  # type: ignore[union-attr]


def addressed(words: list[str]) -> tuple[str, click.Command, list[str]]:
    """The command that `words` begin with, its name, and the words after it."""
    command: click.Command = cli
    names: list[str] = []
    while isinstance(command, click.Group) and words:
        inner = command.get_command(click.Context(command), words[0])
        if inner is None:
            break
        names.append(words[0])
        command, words = inner, words[1:]
    return " ".join(names), command, words


def options_of(command: click.Command) -> set[str]:
    return {name for parameter in command.get_params(click.Context(command)) for name in (*parameter.opts, *parameter.secondary_opts)}


def all_options(command: click.Command) -> set[str]:
    context = click.Context(command)
    inner = [command.get_command(context, name) for name in command.list_commands(context)] if isinstance(command, click.Group) else []
    return options_of(command).union(*(all_options(part) for part in inner if part is not None))


def check_command(words: list[str]) -> None:
    """Parse a command as the command line does, and the configuration that it names.

    Raises:
        click.ClickException: if it is refused. BadInput: if an override is.
    """
    name, command, rest = addressed(words)
    assert not isinstance(command, click.Group), f"celebdit {' '.join(words)}: no such command"
    values = command.make_context(name, list(rest)).params
    if name in CONFIGURED and values["preset"] in preset_names():
        load_config(values["preset"], values["overrides"])


@pytest.mark.parametrize("block", SCRIPTS, ids=lambda block: block.name)
def test_commands_in_blocks_are_accepted(block: Block) -> None:
    assert block.info in REASONS, f"{block.name}: after sh stands nothing, or one of {', '.join(sorted(REASONS - {''}))}"
    for words in command_lines(block.text, "celebdit"):
        check_command(words)
    for words in command_lines(block.text, "make"):
        assert words[0] in TARGETS, f"make {words[0]}: no such target"


def test_blocks_have_commands_and_a_wrong_one_is_refused() -> None:
    assert sum(len(list(command_lines(block.text, "celebdit"))) for block in SCRIPTS) > 30
    script = "a=1 .venv/bin/celebdit run \\\n  smoke --json > x # celebdit no\nkubectl -n celebdit get pods"
    assert list(command_lines(script, "celebdit")) == [["run", "smoke", "--json"]]
    for words in (["run", "smoke", "--no-such"], ["no-such"], ["models", "promote"], ["serve", "a", "--port", "none"]):
        with pytest.raises((click.ClickException, AssertionError)):
            check_command(words)
    with pytest.raises(BadInput, match="unknown key"):
        check_command(["run", "smoke", "training.no_such=1"])


@pytest.mark.parametrize("document", GUIDES, ids=lambda path: str(path.relative_to(ROOT)))
def test_commands_options_and_settings_in_the_text_exist(document: Path) -> None:
    options = all_options(cli)
    for code in inline_code(document):
        words = code.split()
        if words[0].endswith("celebdit") and len(words) > 1 and not words[1].isupper():
            name, command, rest = addressed(words[1:])
            assert name, f"{code}: no such command"
            assert {word for word in rest if word.startswith("--")} <= options_of(command), code
        elif words[0].startswith("--"):
            assert words[0] in options, f"{code}: no command has this option"
        elif words[0] == "make" and len(words) > 1 and not words[1].isupper():
            assert words[1] in TARGETS, f"{code}: no such target"
        for section, field in re.findall(rf"(?<![/\w.])({'|'.join(SECTIONS)})\.([a-z_]+)(?![\w/(])", code):
            assert field in SECTIONS[section] | {"md", "toml", "html"}, f"{code}: section {section} has no {field}"


@pytest.mark.parametrize("block", blocks("toml"), ids=lambda block: block.name)
def test_settings_in_blocks_exist(block: Block, tmp_path: Path) -> None:
    tables = tomllib.loads(block.text)
    if "vary" in tables:
        (tmp_path / "sweep.toml").write_text(tomli_w.dumps({"name": "documented", "base": "demo", "rungs": [1], **tables}))
        load_sweep(tmp_path / "sweep.toml")
        return
    for section, values in tables.items():
        assert set(values) <= SECTIONS[section], f"section {section} has no {set(values) - SECTIONS[section]}"
