"""Commands in hints and notes, completed for the user to run as printed: what raises an error does not know the command line.

Promises: `celebdit WORDS` in a text becomes the program as the user can call it, with the `--home`, `--endpoint` and `--namespace` of the
command line that the named command takes, unless the text has them already. "as `celebdit run` prints it" speaks of a command that ran
before, and stays as it is.
"""

import functools
import re
import shlex
from collections.abc import Callable

import click
from click.core import ParameterSource

from components.errors import CelebditError
from pipeline.commands.options import command_name
from pipeline.view import RunView

_REPEATED = ("home", "endpoint", "namespace")
_COMMAND = re.compile(r"(?<![\w./-])(?<!as `)celebdit (?P<words>[a-z-]+(?: [a-z-]+)?)(?![\w/])")


def complete_hints(command: click.Command) -> None:
    """Let a command, and the commands below it, complete the commands in the hints of their errors; repeating it is harmless."""
    if isinstance(command, click.Group):
        for below in command.commands.values():
            complete_hints(below)
    elif command.callback is not None and not hasattr(command.callback, "completes_hints"):
        callback = command.callback

        @functools.wraps(callback)
        def run(*arguments: object, **options: object) -> object:
            try:
                return callback(*arguments, **options)
            except CelebditError as error:
                if error.hint is not None:
                    error.hint = complete_commands(error.hint)
                raise

        run.completes_hints = True  # type: ignore[attr-defined]
        command.callback = run


def complete_commands(text: str) -> str:
    """Return `text` with the commands in it completed for the present command line."""
    return command_completer()(text)


def command_completer() -> Callable[[str], str]:
    """Return `complete_commands` of the present command line, for other threads."""
    context = click.get_current_context(silent=True)
    if context is None:
        return lambda text: text
    options = {
        name: f" --{name} {shlex.quote(str(context.params[name]))}"
        for name in _REPEATED
        if context.get_parameter_source(name) is ParameterSource.COMMANDLINE
    }
    root, name = context.find_root(), command_name()

    def complete(match: re.Match[str]) -> str:
        words, command = _resolve(match["words"].split(" "), root)
        if command is None:
            return match[0]
        takes = {parameter.name for parameter in command.params}
        repeated = [text for option, text in options.items() if option in takes and text not in match.string]
        rest = match["words"].removeprefix(words)
        return f"{shlex.quote(name)} {words}{''.join(repeated)}{rest}"

    return lambda text: _COMMAND.sub(complete, text)


def open_view() -> RunView:
    """Return a view whose notes have the commands in them completed."""
    return RunView(complete_commands=command_completer())


def _resolve(words: list[str], root: click.Context) -> tuple[str, click.Command | None]:
    """Return the words that name a command, and the command; None if they name none, or a group of commands."""
    command: click.Command | None = root.command
    named: list[str] = []
    for word in words:
        if not isinstance(command, click.Group):
            break
        command = command.get_command(root, word)
        named.append(word)
    return " ".join(named), None if isinstance(command, click.Group) else command
