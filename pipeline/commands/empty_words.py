"""Refuse an empty argument or value of an option, as a variable of the shell gives that is not set, before a server is asked for it."""

from typing import Any

import click


class _NotEmpty(click.ParamType[Any]):
    """Another type without the empty text."""

    def __init__(self, of: click.ParamType[Any], *, blanks: bool) -> None:
        self.of = of
        self.name = of.name
        self._blanks = blanks

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if isinstance(value, str) and not (value if self._blanks else value.strip()):
            self.fail("it is empty; is a variable of the shell not set?", param, ctx)
        return self.of.convert(value, param, ctx)


def refuse_empty_words(command: click.Command) -> None:
    """Let a command, and the commands below it, refuse them; options with a type or a check of their own say themselves what is wrong."""
    for parameter in command.params:
        is_argument = isinstance(parameter, click.Argument)
        if type(parameter.type) in (click.types.StringParamType, click.Path) and (is_argument or parameter.callback is None):
            parameter.type = _NotEmpty(parameter.type, blanks=not is_argument)
    if isinstance(command, click.Group):
        for below in command.commands.values():
            refuse_empty_words(below)
