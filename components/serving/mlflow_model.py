"""The model as MLflow serves it: seeds in, PNG images out. This file is stored with every registered version and run from there.

Promises: no pickle (MLflow runs this source, the weights are safetensors whose sha256 is verified); image i is a function of (weights,
seed, sampler, num_steps) and not of the rest of the request. Imports nothing of this project but `model`, which is stored beside it.
"""

import hashlib
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from mlflow.exceptions import MlflowException
from mlflow.models import set_model
from mlflow.pyfunc.model import PythonModel, PythonModelContext
from PIL import Image
from safetensors.torch import load_file

from model.config import SamplingConfig
from model.description import VersionDescription
from model.generator import Generator
from model.sampler_table import SAMPLERS

MAX_IMAGES = 64
MAX_STEPS = 1000


class FaceModel(PythonModel):
    """Draws one image for each seed."""

    def load_context(self, context: PythonModelContext) -> None:
        description = VersionDescription.read(Path(context.artifacts["description"]))
        with Path(context.artifacts["weights"]).open("rb") as weights:
            if hashlib.file_digest(weights, "sha256").hexdigest() != description.weights_sha256:
                raise ValueError("the weights are not those that were registered")
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._sampling, self._is_student = description.sampling, description.is_student
        self._generator = Generator.from_spec(load_file(context.artifacts["weights"]), description.model_spec, device=device)
        self._pass_images = 8 if device.type == "cuda" else 1

    def predict(self, context: PythonModelContext, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> pd.DataFrame:
        """Return a frame with the columns `seed` and `image` (PNG bytes).

        Raises:
            MlflowException: naming the input that is out of bounds; MLflow's server answers with status 400 and this text.
        """
        try:
            seeds = _checked_seeds(model_input)
            sampling = self._check_params(params or {})
        except ValueError as error:
            raise MlflowException.invalid_parameter_value(str(error)) from error
        images = self._generator.draw(sampling, seeds, pass_images=self._pass_images)
        return pd.DataFrame({"seed": seeds, "image": [_png(image) for image in images.permute(0, 2, 3, 1).numpy()]})

    def _check_params(self, params: Mapping[str, Any]) -> SamplingConfig:
        num_steps, sampler = int(params.get("num_steps", self._sampling.num_steps)), str(params.get("sampler", self._sampling.sampler))
        if not 1 <= num_steps <= MAX_STEPS:
            raise ValueError(f"num_steps {num_steps} must lie between 1 and {MAX_STEPS}")
        if sampler not in SAMPLERS:
            raise ValueError(f"sampler {sampler!r} is not one of {', '.join(SAMPLERS)}")
        own = self._sampling
        if self._is_student and (sampler, num_steps) != (own.sampler, own.num_steps):
            raise ValueError(
                f"sampler {sampler!r} with num_steps {num_steps} is not how this distilled student draws images: "
                f"leave both out, or set {own.sampler!r} and {own.num_steps}"
            )
        return SamplingConfig.model_validate({**self._sampling.model_dump(), "num_steps": num_steps, "sampler": sampler})


def _checked_seeds(model_input: pd.DataFrame) -> list[int]:
    seeds = [int(seed) for seed in model_input["seed"]]
    if not 1 <= len(seeds) <= MAX_IMAGES:
        raise ValueError(f"{len(seeds)} seeds in one request, allowed are 1 to {MAX_IMAGES}")
    if bad := [seed for seed in seeds if not 0 <= seed < 2**32]:
        raise ValueError(f"seed {bad[0]} must lie in [0, 2**32)")
    return seeds


def _png(image: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()


set_model(FaceModel())
