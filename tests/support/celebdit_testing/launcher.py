"""The train step's launcher as a process of its own: `python -m celebdit_testing.launcher SPEC.json`, ends with the step's exit code."""

import os
import sys
from pathlib import Path

from components.runtime.context import step
from components.train.spec import TrainSpec
from components.train.train import run
from model.config import Recipe


def main() -> None:
    spec = TrainSpec.load(Path(sys.argv[1]))
    with step("train", os.environ) as context:
        recipe = Recipe.model_validate({name: getattr(spec, name) for name in Recipe.model_fields})
        run(recipe, spec.dataset, spec.resources, context, features=spec.features)


if __name__ == "__main__":
    main()
