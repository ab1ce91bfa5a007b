"""The command `celebdit`: one frame around all commands.

Promises: human output goes to stderr, `--json` prints exactly one JSON object on stdout; an error that is meant for people is one line
with a hint and no traceback; the exit code says what kind it was (README, "Exit codes"). What commands do is in `pipeline/commands/`.
"""

import importlib
import json
import os
import signal
import sys
import traceback
from collections.abc import Sequence
from dataclasses import replace
from types import FrameType

import click

from components.errors import BUG_HINT, BadInput, CelebditError, Failure, Interrupted
from components.runtime.redact import redactor
from pipeline.view import printable

_COMMANDS = {
    "demo": ("pipeline.commands.run", "demo", "Draw faces, train on them, evaluate and register: the whole pipeline in a few minutes."),
    "run": ("pipeline.commands.run", "run", "Run the pipeline with a preset or a configuration file."),
    "ingest": ("pipeline.commands.ingest", "ingest", "Check the images of a source and store them as a data set."),
    "compile": ("pipeline.commands.compile", "compile_command", "Write the pipeline as KFP YAML."),
    "submit": ("pipeline.commands.submit", "submit", "Run the pipeline on Kubeflow Pipelines, once per configuration."),
    "resume": ("pipeline.commands.resume", "resume", "Start a run on Kubeflow Pipelines again where it stopped."),
    "schedule": ("pipeline.commands.schedule", "schedule", "Run the pipeline on Kubeflow Pipelines again and again."),
    "runs": ("pipeline.commands.runs", "runs", "List the runs on Kubeflow Pipelines, or the steps of one."),
    "doctor": ("pipeline.commands.doctor", "doctor", "Check what a first run would trip over, here or on the cluster."),
    "models": ("pipeline.commands.models", "models", "List, promote and roll back model versions."),
    "ema": ("pipeline.commands.ema", "ema", "Make an average of the weights of another width from the snapshots of a run."),
    "import-checkpoint": (
        "pipeline.commands.import_checkpoint",
        "import_checkpoint",
        "Register the published checkpoint dit_final_12_f_250.pth as a version.",
    ),
    "serve": ("pipeline.commands.serve", "serve", "Serve a registered version over HTTP, or print a KServe manifest for it."),
    "sample": ("pipeline.commands.sample", "sample", "Draw images from a checkpoint, a run or a registered version."),
    "compare": ("pipeline.commands.compare", "compare", "Put runs side by side: settings, metrics with their protocol, cost and samples."),
    "config": ("pipeline.commands.config", "config", "Show presets and resolved configurations."),
    "services": ("pipeline.commands.services", "services", "Start, stop and look at the embedded servers."),
    "ui": ("pipeline.commands.services", "ui", "Keep the embedded servers running and print where to look."),
    "sync": ("pipeline.commands.sync", "sync", "Tell MLflow what it missed of a run while it was away."),
}


class _LazyGroup(click.Group):
    """Imports a command's module when the command is used, so that `--help` is instant."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        module, attribute, _ = _COMMANDS[cmd_name]
        found = getattr(importlib.import_module(module), attribute)
        assert isinstance(found, click.Command)
        return found

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, _, text) in _COMMANDS.items()])


@click.group(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="celebdit")
def cli() -> None:
    """Train a Diffusion Transformer face generator, from raw images to a promoted model version."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and leave the process with the exit code of what happened."""
    arguments = sys.argv[1:] if arguments is None else arguments
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        code = cli.main(args=list(arguments), prog_name="celebdit", standalone_mode=False)
    except click.ClickException as error:
        code = _tell(Failure.of(_from_click(error)), arguments)
    except (KeyboardInterrupt, click.Abort):
        code = _tell(Failure.of(Interrupted("interrupted")), arguments)
    except CelebditError as error:
        code = _tell(Failure.of(error), arguments)
    except BrokenPipeError:
        # The reader of our output has gone; there is nobody to tell.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    except Exception as error:
        print(redactor()("".join(traceback.format_exception(error))), file=sys.stderr)
        code = _tell(replace(Failure.of(error), hint=BUG_HINT), arguments)
    raise SystemExit(code or 0)


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _from_click(error: click.ClickException) -> CelebditError:
    command = error.ctx.command_path if isinstance(error, click.UsageError) and error.ctx else "celebdit"
    return BadInput(" ".join(error.format_message().split()), hint=f"see {command} --help")


def _tell(failure: Failure, arguments: Sequence[str]) -> int:
    redact = redactor()
    first, *further = (redact(printable(line)) for line in failure.message.splitlines() or [""])
    print(f"celebdit: {first}", file=sys.stderr)
    for line in further:
        print(f"  {line}", file=sys.stderr)
    if failure.hint:
        print(f"  {redact(printable(failure.hint))}", file=sys.stderr)
    if "--json" in arguments:
        print(json.dumps({"error": {"message": redact(failure.message), "hint": failure.hint, "exit_code": failure.exit_code}}))
    return failure.exit_code


if __name__ == "__main__":
    main()
