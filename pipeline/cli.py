"""The command `celebdit`: finds the command, runs it and turns its errors into messages and exit codes.

Promises: human output goes to stderr, `--json` prints exactly one JSON object on stdout; an expected error is one line with a hint and no
traceback; the exit code is that of the kind of error (README, "Exit codes"). The commands are in `pipeline/commands/`.
"""

import importlib
import json
import logging
import os
import signal
import sys
import traceback
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import FrameType

import click

from components.environment import LOG_LEVEL
from components.errors import BUG_HINT, EXIT_OK, BadInput, CelebditError, Failure, Interrupted
from components.process_settings import log_level
from components.runtime.logs import configure_logging
from components.runtime.redact import redactor
from components.system.failures import os_failure
from pipeline.commands.commands_in_hints import complete_hints
from pipeline.commands.empty_words import refuse_empty_words
from pipeline.commands.help import example
from pipeline.streams import discard_stdout, has_no_reader, safe_streams
from pipeline.view import printable

_log = logging.getLogger(__name__)

_COMMANDS = {
    "demo": ("pipeline.commands.run", "demo", "Run the whole pipeline on generated faces, in a few minutes."),
    "run": ("pipeline.commands.run", "run", "Run the pipeline with a preset or a configuration file."),
    "plan": ("pipeline.commands.plan", "plan", "Show what a run would do and cost, without starting it."),
    "sweep": ("pipeline.commands.sweep", "sweep", "Search over settings and register the best model."),
    "ingest": ("pipeline.commands.ingest", "ingest", "Validate the images of a source and store them as a dataset."),
    "compile": ("pipeline.commands.compile", "compile_command", "Compile the pipeline to KFP YAML."),
    "submit": ("pipeline.commands.submit", "submit", "Submit the pipeline to Kubeflow Pipelines, once per configuration."),
    "resume": ("pipeline.commands.resume", "resume", "Resume a failed or cancelled run on Kubeflow Pipelines."),
    "schedule": ("pipeline.commands.schedule", "schedule", "Run the pipeline on Kubeflow Pipelines on a schedule."),
    "runs": ("pipeline.commands.runs", "runs", "List the runs on Kubeflow Pipelines or of this machine, or the steps of one."),
    "doctor": ("pipeline.commands.doctor", "doctor", "Check the prerequisites of a run, on this machine or on the cluster."),
    "models": ("pipeline.commands.models", "models", "List, promote, roll back, sign and package model versions."),
    "ema": ("pipeline.commands.ema", "ema", "Compute a post-hoc EMA of another width from a run's snapshots."),
    "import-checkpoint": (
        "pipeline.commands.import_checkpoint",
        "import_checkpoint",
        "Register the published checkpoint dit_final_12_f_250.pth as a model version.",
    ),
    "weights": ("pipeline.commands.weights", "weights", "Add weights of the metrics' networks to the store."),
    "serve": ("pipeline.commands.serve", "serve", "Serve a registered version over HTTP, or print a KServe manifest for it."),
    "sample": ("pipeline.commands.sample", "sample", "Generate images from a checkpoint, a run or a registered version."),
    "evaluate": ("pipeline.commands.evaluate", "evaluate", "Score checkpoints and EMA widths of a training, and register the best."),
    "compare": ("pipeline.commands.compare", "compare", "Compare runs: settings, metrics with their protocol, cost and samples."),
    "config": ("pipeline.commands.config", "config", "Show presets and resolved configurations."),
    "services": ("pipeline.commands.services", "services", "Start, stop and list the embedded servers."),
    "ui": ("pipeline.commands.services", "ui", "Start the embedded servers and print their addresses."),
    "storage": ("pipeline.commands.storage", "storage", "Show what takes room in object storage, and delete what is not needed."),
    "sync": ("pipeline.commands.sync", "sync", "Upload the metrics of a run that MLflow has not received."),
}

_OTHER_SPELLINGS = {"licence": "license", "accept-licence": "accept-license", "num-steps": "steps"}


def _be_verbose(ctx: click.Context, parameter: click.Parameter, count: int) -> None:
    """Log more in this process and in those that it starts."""
    if count:
        level = logging.INFO if count == 1 else logging.DEBUG
        os.environ[LOG_LEVEL] = logging.getLevelName(level)
        configure_logging(level, terminal=True)


def add_verbose(command: click.Command) -> None:
    """Give a command, and the commands below it, the option `--verbose`."""
    if not any("--verbose" in parameter.opts for parameter in command.params):
        text = f"Log more on stderr; -vv logs all. The level can also be set by {LOG_LEVEL}."
        command.params.append(click.Option(["-v", "--verbose"], count=True, expose_value=False, callback=_be_verbose, help=text))
    if isinstance(command, click.Group) and not isinstance(command, _LazyGroup):
        for below in command.commands.values():
            add_verbose(below)


class _LazyGroup(click.Group):
    """Imports a command's module when the command is used, so that `--help` is instant."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        module, attribute, _ = _COMMANDS[cmd_name]
        command = getattr(importlib.import_module(module), attribute)
        assert isinstance(command, click.Command)
        add_verbose(command)
        refuse_empty_words(command)
        complete_hints(command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, _, text) in _COMMANDS.items()])


def one_spelling(option: str) -> str:
    """Return the name that help shows of an option which has two."""
    return _OTHER_SPELLINGS.get(option, option)


@click.group(
    cls=_LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"], "token_normalize_func": one_spelling},
    epilog=example("celebdit demo"),
)
@click.version_option(package_name="celebdit")
def cli() -> None:
    """Train a Diffusion Transformer face generator, from raw images to a promoted model version."""


add_verbose(cli)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and end the process with the exit code of the outcome."""
    with safe_streams():
        code = _run(sys.argv[1:] if arguments is None else arguments)
    raise SystemExit(code)


def _run(arguments: Sequence[str]) -> int:
    """Run the command line and return its exit code; an error is printed."""
    _handle_signals()
    _only_print_warnings()
    try:
        _require_current_folder()
        configure_logging(log_level() or logging.WARNING, terminal=True)
        # click's own `main` ends with 1, which means that the gate failed, when any pipe breaks.
        with cli.make_context("celebdit", list(arguments)) as context:
            code = cli.invoke(context)
        sys.stdout.flush()
        return int(code or EXIT_OK)
    except click.exceptions.Exit as ended:
        return ended.exit_code
    except (Exception, KeyboardInterrupt) as error:
        if isinstance(error, BrokenPipeError) and has_no_reader(sys.stdout):  # as with `| head`, which is no error
            discard_stdout()
            return EXIT_OK
        return _print_error(_failure_of(error), arguments)


def _only_print_warnings() -> None:
    """Print the warnings of libraries although PYTHONWARNINGS or `python -W` makes them errors: they are no failure of the command."""
    if any("error".startswith(option.partition(":")[0].strip() or "-") for option in sys.warnoptions):
        warnings.simplefilter("default")


def _require_current_folder() -> None:
    """Raise BadInput if the current folder was deleted: relative paths, the home's default among them, name nothing then."""
    try:
        Path.cwd()
    except FileNotFoundError as error:
        raise BadInput("the current folder was deleted", hint="change to a folder that exists") from error


def _failure_of(error: BaseException) -> Failure:
    """Return what is shown of an error; of an unexpected one, print the traceback."""
    match error:
        case click.ClickException():
            return Failure.of(_translate_click_error(error))
        case KeyboardInterrupt() | click.Abort():
            return Failure.of(Interrupted("interrupted"))
        case CelebditError():
            return Failure.of(error)
    if (expected := os_failure(error)) is not None:
        _log.debug("the command ended", exc_info=error)
        return Failure.of(expected)
    print(redactor()("".join(traceback.format_exception(error))), file=sys.stderr)
    return replace(Failure.of(error), hint=BUG_HINT)


def _handle_signals() -> None:
    """Let SIGTERM, and SIGHUP unless it is ignored (`nohup`), interrupt the command as Ctrl-C does."""
    terminals = [stream.fileno() for stream in (sys.stdout, sys.stderr) if stream is not None and stream.isatty()]

    def interrupt(number: int, frame: FrameType | None) -> None:
        for name in handled:  # a closing terminal sends more than one, and the first is being obeyed
            signal.signal(name, lambda number, frame: None)
        if number == signal.SIGHUP:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            for handle in terminals:  # what is written to a terminal that is gone fails
                os.dup2(nowhere, handle)
        raise KeyboardInterrupt

    handled = [signal.SIGTERM] if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN else [signal.SIGTERM, signal.SIGHUP]
    for name in handled:
        signal.signal(name, interrupt)


def _translate_click_error(error: click.ClickException) -> CelebditError:
    command = error.ctx.command_path if isinstance(error, click.UsageError) and error.ctx else "celebdit"
    if isinstance(error, click.exceptions.NoArgsIsHelpError) and error.ctx:
        # Its message is the whole help, laid out for a terminal.
        group = error.ctx.command
        names = ", ".join(group.list_commands(error.ctx)) if isinstance(group, click.Group) else ""
        return BadInput(f"{command} needs a command: {names}", hint=f"see {command} --help")
    return BadInput(" ".join(error.format_message().split()), hint=f"see {command} --help")


def _print_error(failure: Failure, arguments: Sequence[str]) -> int:
    redact = redactor()
    first, *further = (redact(printable(line)) for line in failure.message.splitlines() or [""])
    print(f"celebdit: {first}", file=sys.stderr)
    for line in further:
        print(f"  {line}", file=sys.stderr)
    if failure.hint:
        print(f"  {redact(printable(failure.hint))}", file=sys.stderr)
    try:
        if "--json" in arguments:
            print(json.dumps({"error": {"message": redact(failure.message), "hint": failure.hint, "exit_code": failure.exit_code}}))
        sys.stdout.flush()
    except OSError:
        discard_stdout()
    return failure.exit_code


if __name__ == "__main__":
    main()
