"""Options that several commands share, and functions that print results."""

import json
import shlex
import shutil
import sys
import unicodedata
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click
from click.core import ParameterSource

from components.registry.config import check_model_name
from pipeline.home import default_home
from pipeline.steps import STEPS, step_names

F = TypeVar("F", bound=Callable[..., Any])


class OutputPath(click.Path):
    """The path of a file or folder to write; refused is an empty one, as of an unset variable, and one with control characters."""

    def __init__(self) -> None:
        super().__init__(path_type=Path)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not str(value):
            self.fail("the path is empty", param, ctx)
        if any(unicodedata.category(character) == "Cc" for character in str(value)):
            self.fail(f"the path {str(value)!r} contains control characters", param, ctx)
        return super().convert(value, param, ctx)


def home_option(function: F) -> F:
    """Add `--home`."""
    return click.option(
        "--home",
        type=click.Path(file_okay=False, path_type=Path),
        default=default_home,
        help="Folder for local state.  [default: .celebdit, or CELEBDIT_HOME]",
    )(function)


def json_option(function: F) -> F:
    """Add `--json`."""
    return click.option("--json", "as_json", is_flag=True, help="Print the result as one JSON object on stdout.")(function)


def cluster_options(function: F) -> F:
    """Add the options of compiling: `--images` and `--cache`."""
    function = click.option(
        "--images",
        type=click.Path(dir_okay=False, path_type=Path),
        default=Path("images.lock.json"),
        show_default=True,
        help="Image lock file that `make images` wrote.",
    )(function)
    return click.option(
        "--cache",
        "cached",
        type=click.Choice([step.name for step in STEPS if step.cacheable]),
        multiple=True,
        help="Let KFP skip this step if it ran with the same inputs before; repeat for several.",
    )(function)


def debug_option(function: F) -> F:
    """Add `--debug-pause`."""
    return click.option(
        "--debug-pause",
        "paused",
        type=click.Choice(step_names()),
        multiple=True,
        help="Keep the pod of this step after it ended, until it is released (docs/kubernetes.md); repeat for several.",
    )(function)


def kubeflow_options(function: F) -> F:
    """Add `--endpoint` and `--namespace`."""
    function = click.option("--endpoint", metavar="URL", help="URL of Kubeflow Pipelines.  [default: KF_PIPELINES_ENDPOINT]")(function)
    return click.option("--namespace", metavar="NS", help="Your namespace, on a multi-user server.  [default: CELEBDIT_KFP_NAMESPACE]")(
        function
    )


def check_model(context: click.Context, parameter: click.Parameter, name: str | None) -> str | None:
    """Refuse a model name that no registered model can have, as the callback of an option."""
    return None if name is None else check_model_name(name)


def wait_option(function: F) -> F:
    """Add `--wait`."""
    return click.option("--wait", is_flag=True, help="Wait for the run to end; the exit code is its outcome.")(function)


def license_option(function: F) -> F:
    """Add `--accept-license`."""
    return click.option(
        "--accept-license",
        "accepted_by",
        metavar="NAME",
        help="Accept the licence of the data as NAME; recorded with the dataset and every model.",
    )(function)


def print_json(value: object) -> None:
    """Print the one JSON object of a command."""
    click.echo(json.dumps(value, indent=2, sort_keys=False))


def command_name() -> str:
    """Return the program as the user can call it, for commands that we print: the name if it is on the PATH, else a path."""
    program = Path(sys.argv[0])
    on_path = shutil.which("celebdit")
    if program.name != "celebdit" or (on_path is not None and Path(on_path).resolve() == program.resolve()):
        return "celebdit"
    location = program.absolute()
    return str(location.relative_to(Path.cwd())) if location.is_relative_to(Path.cwd()) else str(location)


def next_command(words: str, *repeated: str) -> str:
    """Return the command that `celebdit WORDS` is for the user, with the `--home` of the command line: without it another place is read.

    `repeated` are the names of other parameters whose options it has as well, if the command line has them.
    """
    return _repeat_options(words, (*repeated, "home"))


def next_cluster_command(words: str, *repeated: str) -> str:
    """Return the command that `celebdit WORDS` is for the user, with the `--endpoint` and `--namespace` of the command line.

    `repeated` as in `next_command`.
    """
    return _repeat_options(words, (*repeated, "endpoint", "namespace"))


def _repeat_options(words: str, names: Sequence[str]) -> str:
    context = click.get_current_context(silent=True)
    parameters = {} if context is None else {parameter.name: parameter for parameter in context.command.params}
    options = [
        option
        for name in names
        if context is not None and context.get_parameter_source(name) is ParameterSource.COMMANDLINE
        for option in _option_words(parameters[name], context.params[name])
    ]
    return " ".join([shlex.quote(command_name()), words, *(shlex.quote(option) for option in options)])


def _option_words(parameter: click.Parameter, value: Any) -> list[str]:
    """Return the words of the command line that give an option its value."""
    name = max(parameter.opts, key=len)
    if isinstance(parameter, click.Option) and parameter.is_flag:
        return [name]
    return [word for each in (value if parameter.multiple else (value,)) for word in (name, str(each))]


def print_mlflow_url(url: str, *, embedded: bool) -> None:
    """Print the URL of the result in MLflow; the embedded server stops with the command unless another command uses it."""
    print_line(f"MLflow: {url}")
    if embedded:
        print_line(f"        (if its server has stopped: `{next_command('ui')}` starts it again and prints its address)")


def print_gate(decision: str, reasons: Sequence[str]) -> None:
    """Print the gate's decision on stderr, with one line for each reason."""
    first, *more = reasons or [""]
    print_line(f"  gate       {decision}: {first}" if first else f"  gate       {decision}")
    for reason in more:
        print_line(f"             {reason}")


def print_line(text: str = "") -> None:
    """Print a line on stderr."""
    click.echo(text, err=True)
