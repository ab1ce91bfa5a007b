"""Any values for the options of every command: they end with a result or with an error for people, never with an internal one."""

import io
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import click
import pytest
from celebdit_testing.http_server import FixedAnswer, answering
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from pipeline.cli import _COMMANDS, cli, main

ANSWER = b"HTTP/1.1 404 x\r\nContent-Type: application/json\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}"
LEFT_OUT = {"ui", "services"}
"""They start servers, whatever their options are; `services status` and `down` have no other."""


@pytest.fixture(scope="module")
def refusing_server() -> Iterator[FixedAnswer]:
    """Stands for S3, MLflow and Kubeflow Pipelines at once, and knows nothing of what it is asked for."""
    with answering() as server:
        server.answer_with(ANSWER)
        yield server


def commands(command: click.Command, *above: str) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """Every command that does something, with its name."""
    if isinstance(command, click.Group):
        for name in command.list_commands(click.Context(command)):
            below = command.get_command(click.Context(command), name)
            assert below is not None
            if name not in LEFT_OUT:
                yield from commands(below, *above, name)
    else:
        yield above, command


EVERY = dict(commands(cli))
ODD = ["", " ", ".", "..", "/", "a/b", "-", "--", "~nobody/x", "http://[::1", "s3://", "s3://b", "s3://bucket/k", "models:/", "models:/a/b",
       "models:/a@champion", "x" * 300, "9" * 5000, "1e999", "nan", "-1", "0", "@", "a@9", "%00", "größe", "\udc80", "a\nb", "/proc/x.png",
       "/dev/null", "/dev/full/x", "x.toml", "x.png", "x.yaml", "demo", "smoke", "training.total_steps=0", "a=b", "=", "synthetic://?count=x",
       "kaggle://x", "file://[::1", "0123456789abcdef", "0123456789abcdef@1"]  # fmt: skip
TEXT = st.sampled_from(ODD) | st.text(alphabet=st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=30)
SLOW = {"--keep-services", "--wait", "--verbose"}


@st.composite
def lines(draw: st.DrawFn) -> list[str]:
    """A command with values for its arguments and some of its options."""
    name = draw(st.sampled_from(sorted(EVERY)))
    return [*name, *draw(values_for(EVERY[name]))]


def value_of(option: click.Option) -> st.SearchStrategy[str]:
    """Odd values, and more often those that the option's own check lets pass."""
    kind = option.type
    if isinstance(kind, click.Choice):
        return st.sampled_from([str(choice) for choice in kind.choices]) | TEXT
    if isinstance(kind, click.IntRange):
        low, high = int(kind.min or 0), int(kind.max or 2**70)
        return st.sampled_from([low, high, min(low + 1, high)]).map(str) | st.integers(low, high).map(str) | TEXT
    if kind in (click.INT, click.FLOAT):
        return st.integers().map(str) | st.floats().map(str) | TEXT
    return TEXT


@st.composite
def values_for(draw: st.DrawFn, command: click.Command) -> list[str]:
    words: list[str] = []
    for parameter in command.params:
        if isinstance(parameter, click.Argument):
            count = draw(st.integers(1, 2)) if parameter.nargs == -1 else parameter.nargs
            words += [draw(TEXT) for _ in range(count)]
        elif parameter.opts[-1] not in {"--home", *SLOW} and (draw(st.booleans()) or parameter.required):
            words.append(parameter.opts[-1])
            if isinstance(parameter, click.Option) and not parameter.is_flag:
                words += [draw(value_of(parameter)) for _ in range(parameter.nargs)]
    return words


def run(arguments: list[str], folder: Path, server: FixedAnswer) -> tuple[int, str]:
    """Run a line as in a process of its own, with one server for all addresses; return its exit code and its messages."""
    environment, here, handler = dict(os.environ), Path.cwd(), signal.getsignal(signal.SIGTERM)
    messages = io.StringIO()
    os.environ.update(
        CELEBDIT_STORE="s3://bucket/prefix",
        MLFLOW_TRACKING_URI=server.address,
        AWS_ENDPOINT_URL=server.address,
        KF_PIPELINES_ENDPOINT=server.address,
        CELEBDIT_STORAGE_DEADLINE_S="0.1",
        MLFLOW_HTTP_REQUEST_TIMEOUT="2",
        MLFLOW_HTTP_REQUEST_MAX_RETRIES="0",
        CELEBDIT_HOME=str(folder / "home"),
        KUBECONFIG=str(folder / "none"),
    )
    os.chdir(folder)
    try:
        with redirect_stdout(io.TextIOWrapper(io.BytesIO())), redirect_stderr(messages):
            main(arguments)
    except SystemExit as ended:
        return int(ended.code or 0), messages.getvalue()
    finally:
        os.chdir(here)
        os.environ.clear()
        os.environ.update(environment)
        signal.signal(signal.SIGTERM, handler)
    raise AssertionError("the command line always ends with an exit code")


def test_every_command_is_tried() -> None:
    assert {name[0] for name in EVERY} == _COMMANDS.keys() - LEFT_OUT


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(arguments=lines())
@example(arguments=["models", "list", "--model", "a/b"])
@example(arguments=["models", "list", "--model", ".."])
@example(arguments=["models", "list", "--model", ""])
@example(arguments=["models", "promote", "1", "--reason", "x", "--model", "a/b"])
@example(arguments=["import-checkpoint", "/dev/null", "--model", "a/b"])
@example(arguments=["ema", "0123456789abcdef", "--sigma-rel", "0.1", "--register", "a/b"])
@example(arguments=["sample", "k" * 300])
@example(arguments=["sample", f"s3://bucket/{'k' * 300}"])
@example(arguments=["sample", "0123456789abcdef", "--out", "/proc/x.png"])
@example(arguments=["compare", "a", "b", "--out", "o" * 300 + ".png"])
@example(arguments=["runs", "--endpoint", "http://[::1"])
@example(arguments=["sync", "a/b"])
@example(arguments=["ema", "a/b", "--sigma-rel", "nan"])
@example(arguments=["ingest", "--source", "~nobody/x"])
@example(arguments=["ingest", "--source", "images", "data.max_rejected=7"])
@example(arguments=["run", "smoke", "data.max_rejected=7"])
@example(arguments=["sample", "0123456789abcdef", "--count", "0"])
def test_any_options_end_with_a_result_or_an_error_for_people(arguments: list[str], refusing_server: FixedAnswer, tmp_path: Path) -> None:
    code, messages = run(arguments, tmp_path, refusing_server)
    assert code in (0, 2, 3, 75), f"{arguments}: {messages!a}"
    assert "Traceback" not in messages
    assert sys.stderr is not None
