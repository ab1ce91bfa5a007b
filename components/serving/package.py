"""Packages a checkpoint as an MLflow model, and tests the package behind a real HTTP server.

Promises: nothing in the packaged folder is pickled (source, safetensors, JSON, markdown); `try_out` sends HTTP requests as a client does,
and the packaged code answers them. The serving code is in `mlflow_model.py`, which is packaged too.
"""

import base64
import io
import json
import shlex
import shutil
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import mlflow.pyfunc
import pandas as pd
from mlflow.models import ModelSignature
from mlflow.pyfunc import scoring_server
from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema
from PIL import Image

from components.errors import DataRefused
from components.registry.version_files import DESCRIPTION_FILE, WEIGHTS_FILE
from components.system.child_environment import child_environment
from components.system.ports import free_port, http_status
from components.system.process import spawn, stop
from components.system.python_process import python_command
from model.description import VersionDescription

CARD_FILE = "README.md"
_READY_S = 180.0
_STOP_S = 10.0
_RESPONSE_S = 600.0
_TRIAL_STEPS = 2


def save_model(
    folder: Path, *, weights: Path, description: VersionDescription, card: str, requirements: Sequence[str], model_package: Path
) -> None:
    """Write a pyfunc model from code into `folder`: the serving source, the `model` package, safetensors, JSON and the card."""
    parts = folder.parent / "parts"
    parts.mkdir(parents=True, exist_ok=True)
    description.write(parts / DESCRIPTION_FILE)
    if weights.name != WEIGHTS_FILE:
        shutil.copyfile(weights, parts / WEIGHTS_FILE)
        weights = parts / WEIGHTS_FILE
    sampling = description.sampling
    defaults = {"num_steps": sampling.num_steps, "sampler": sampling.sampler}
    mlflow.pyfunc.save_model(
        path=str(folder),
        python_model=str(Path(__file__).with_name("mlflow_model.py")),
        artifacts={"weights": str(weights), "description": str(parts / DESCRIPTION_FILE)},
        code_paths=[str(model_package)],
        pip_requirements=list(requirements),
        input_example=(pd.DataFrame({"seed": [0, 1]}), defaults),
        signature=ModelSignature(
            inputs=Schema([ColSpec(DataType.long, "seed")]),
            outputs=Schema([ColSpec(DataType.long, "seed"), ColSpec(DataType.binary, "image")]),
            params=ParamSchema(
                [ParamSpec("num_steps", DataType.long, sampling.num_steps), ParamSpec("sampler", DataType.string, sampling.sampler)]
            ),
        ),
    )
    (folder / CARD_FILE).write_text(card)
    shutil.rmtree(parts)


def try_out(folder: Path, *, image_px: int) -> bytes:
    """Serve the model in `folder` over HTTP on this machine, request one image and return the PNG.

    Raises:
        DataRefused: if it cannot be loaded, does not answer, or answers with anything but such an image.
    """
    try:
        with serve_locally(folder) as (url, _):
            image = _request_image(url, {"dataframe_records": [{"seed": 0}], "params": {"num_steps": _TRIAL_STEPS}})
    except Exception as error:  # whatever fails here would fail at the first request
        raise DataRefused(f"the model does not work when it is served: {str(error)[:300]}") from error
    check_image(image, image_px=image_px)
    return image


def check_image(data: bytes, *, image_px: int) -> None:
    """Check that a served model answered with a PNG of the right size.

    Raises:
        DataRefused: naming the difference.
    """
    try:
        image = Image.open(io.BytesIO(data), formats=("PNG",))
        image.load()
    except (OSError, ValueError, SyntaxError) as error:
        raise DataRefused("the served model does not answer with a PNG image") from error
    if image.size != (image_px, image_px):
        raise DataRefused(f"the served model answers with an image of {image.size[0]}x{image.size[1]}, it was trained at {image_px} px")


@contextmanager
def serve_locally(folder: Path, *, port: int | None = None) -> "Iterator[tuple[str, subprocess.Popen[bytes]]]":
    """Run MLflow's scoring server on 127.0.0.1 inside the block, in a process that imports the packaged code only.

    Yields its URL and its process. Its output goes to a file; if it does not start, the last line is in the error.
    """
    port = port or free_port()
    # The command that `mlflow models serve --env-manager local` runs. The current folder must not shadow the packaged code.
    line, environment = scoring_server.get_cmd(str(folder), port, "127.0.0.1")  # type: ignore[arg-type]
    with tempfile.TemporaryFile() as log:
        command = python_command(*shlex.split(line), "--app-dir", str(folder.absolute()))
        process = spawn(command, environment=child_environment("serving", environment), stdout=log, new_group=True, folder=folder)
        try:
            url = f"http://127.0.0.1:{port}"
            _wait_for(url, process, log)
            yield url, process
        finally:
            stop(process, grace_s=_STOP_S)


def _wait_for(url: str, process: "subprocess.Popen[bytes]", log: IO[bytes]) -> None:
    deadline_s = time.monotonic() + _READY_S
    while http_status(f"{url}/ping") != 200:
        if process.poll() is not None or time.monotonic() > deadline_s:
            log.seek(0)
            last = (log.read().decode(errors="replace").strip().splitlines() or ["no output"])[-1]
            raise DataRefused(f"the server of the model did not start: {last[:300]}")
        time.sleep(0.1)


def _request_image(url: str, query: object) -> bytes:
    body = json.dumps(query).encode()
    request = urllib.request.Request(f"{url}/invocations", body, {"Content-Type": "application/json"})  # noqa: S310 - our own address
    try:
        with urllib.request.urlopen(request, timeout=_RESPONSE_S) as response:  # noqa: S310
            return base64.b64decode(json.load(response)["predictions"][0]["image"])
    except urllib.error.HTTPError as refused:
        raise ValueError(f"answer {refused.code}: {refused.read()[:300].decode(errors='replace')}") from refused
