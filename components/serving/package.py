"""Packages a checkpoint as an MLflow model, and tests the package behind a real HTTP server.

Promises: nothing in the packaged folder is pickled (source, safetensors, JSON, markdown); `try_out` sends HTTP requests as a client does,
and the packaged code answers them. The serving code is in `mlflow_model.py`, which is packaged too; `local_server.py` runs it.
"""

import base64
import io
import json
import shutil
import urllib.error
from importlib.metadata import version as installed
from pathlib import Path

import mlflow.pyfunc
import pandas as pd
from mlflow.models import ModelSignature
from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema
from PIL import Image

from components.errors import DataRefused, TemporaryFailure, shorten
from components.registry.version_files import DESCRIPTION_FILE, WEIGHTS_FILE, ModelFiles
from components.registry.version_manifest import MANIFEST_FILE, VersionManifest
from components.serving.local_server import check_not_killed, serve_locally
from components.system.ports import open_here
from model import config as model_config
from model.description import VersionDescription

CARD_FILE = "README.md"
_RESPONSE_S = 600.0
_END_S = 1.0
_TRIAL_STEPS = 2
_REQUIREMENTS = ("torch", "numpy", "pandas", "pillow", "psutil", "pydantic", "jaxtyping", "safetensors", "mlflow")
_OLD_CARD = "Registered before versions had a manifest of their files: these are its weights, with the serving code of this installation.\n"


def save_model(folder: Path, *, weights: Path, description: VersionDescription, card: str) -> None:
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
        # As URIs: MLflow (3.17) takes a path for one, and decodes `%20` and cuts it at `?`.
        artifacts={name: path.absolute().as_uri() for name, path in {"weights": weights, "description": parts / DESCRIPTION_FILE}.items()},
        code_paths=[str(Path(model_config.__file__).parent)],
        pip_requirements=[f"{name}=={installed(name)}" for name in _REQUIREMENTS],
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
    for compiled in list(folder.rglob("__pycache__")):
        shutil.rmtree(compiled)


def servable(files: ModelFiles, scratch: Path) -> ModelFiles:
    """Return `files`, or for a version without a manifest its weights with the code of this installation, packaged in `scratch`."""
    if files.manifest_sha256 is not None:
        return files
    folder = scratch / "packaged"
    shutil.rmtree(folder, ignore_errors=True)
    save_model(folder, weights=files.weights, description=files.description, card=_OLD_CARD)
    of = {"checkpoint_digest": files.description.checkpoint_digest, "ema": files.description.sampling.ema}
    manifest = VersionManifest.of_folder(folder, **of)
    (folder / MANIFEST_FILE).write_bytes(manifest.to_bytes())
    return ModelFiles(folder, folder / "artifacts" / WEIGHTS_FILE, files.description, manifest.digest)


def try_out(files: ModelFiles, *, image_px: int) -> bytes:
    """Serve a version over HTTP on this machine, request one image and return the PNG.

    Raises:
        DataRefused: if it cannot be loaded, does not answer, or answers with anything but such an image.
        TemporaryFailure: if its server is killed from outside, or takes too long to start.
    """
    params = {} if files.description.is_student else {"num_steps": _TRIAL_STEPS}  # a student draws in its own few steps alone
    try:
        with serve_locally(files) as (url, process):
            try:
                image = _request_image(url, {"dataframe_records": [{"seed": 0}], "params": params})
            except OSError:
                check_not_killed(process, wait_s=_END_S)  # the connection is closed a moment before the process has ended
                raise
    except TemporaryFailure:
        raise
    except Exception as error:  # whatever fails here would fail at the first request
        raise DataRefused(f"the model does not work when it is served: {shorten(str(error), max_characters=300)}") from error
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


def _request_image(url: str, query: object) -> bytes:
    body = json.dumps(query).encode()
    try:
        with open_here(f"{url}/invocations", body, timeout_s=_RESPONSE_S, headers={"Content-Type": "application/json"}) as response:
            return base64.b64decode(json.load(response)["predictions"][0]["image"])
    except urllib.error.HTTPError as refused:
        raise ValueError(f"answer {refused.code}: {refused.read()[:300].decode(errors='replace')}") from refused
