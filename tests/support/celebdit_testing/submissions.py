"""Submissions against a test server: what is submitted, and a server whose runs advance with each request."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from celebdit_testing.kfp_server import FakeKfp

from pipeline.cli import main
from pipeline.compile import CompileOptions, compile_pipeline
from pipeline.config import RunConfig
from pipeline.images import Images
from pipeline.kubeflow import KfpAddress, Kubeflow, Patience
from pipeline.submit import submit

DIGESTS = {"cpu": "registry.example/cpu@sha256:" + "a" * 64, "gpu": "registry.example/gpu@sha256:" + "b" * 64}
OPTIONS = CompileOptions(images=Images(**DIGESTS), preset="smoke")
COMPILED: dict[str, bytes] = {}


@contextmanager
def compiling_once() -> Iterator[None]:
    """Compile each configuration once: KFP's compiler takes a second, and the same configuration gives the same bytes."""

    def remembered(config: RunConfig, target: Path, options: CompileOptions) -> str:
        key = config.digest() + repr(options)
        if key not in COMPILED:
            compile_pipeline(config, target, options)
            COMPILED[key] = target.read_bytes()
        target.write_bytes(COMPILED[key])
        return hashlib.sha256(COMPILED[key]).hexdigest()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipeline.submit.compile_pipeline", remembered)
        yield


def connect(server: FakeKfp, **options: Any) -> Kubeflow:
    address = KfpAddress(server.url, options.pop("namespace", None), token=options.pop("token", None))
    return Kubeflow(address, Patience(**{"sleep": lambda seconds: None, "deadline_s": 5.0, **options}))


def submitted(server: FakeKfp, config: RunConfig, **options: Any) -> Any:
    return submit(config, OPTIONS, connect(server), experiment="faces", **options)


def progress(server: FakeKfp, script: list[tuple[str, str]], end: str) -> None:
    """Let every look at the run move it one step further."""

    def advance(run: Any) -> None:
        if script:
            name, state = script.pop(0)
            run.state = "RUNNING"
            server.step(run, name, state, "main: Error (exit code 3)" if state == "FAILED" else None)
        elif run.state not in ("FAILED", "CANCELED"):
            server.end(run, end)

    server.on_get_run = advance


def failed_run(server: FakeKfp, config: RunConfig, state: str = "FAILED") -> Any:
    run = server.runs[submitted(server, config).run_id]
    server.end(run, state)
    return run


def run_cli(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as left:
        main(list(arguments))
    out, err = capsys.readouterr()
    return int(left.value.code or 0), out, err
