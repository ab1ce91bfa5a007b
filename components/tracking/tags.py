"""Names of the tags by which MLflow runs and logged models are found. Imports no MLflow, which takes seconds."""

import re
from collections.abc import Mapping

CONFIG_FILE = "config.toml"
"""Artifact of a pipeline run: the configuration that it was started with, as `celebdit run` reads it."""

TAG_RUN = "celebdit.pipeline_run"
"""Id of the pipeline run that began an MLflow run."""
TAG_KIND = "celebdit.kind"
"""`pipeline` for the parent run, `step` for its children, `registry-log` for a promotion log of an earlier release."""
TAG_EXPERIMENT = "celebdit.experiment"
"""On a pipeline run, the name that its experiment had when it began."""
TAG_STEP = "celebdit.step"
TAG_RUN_KEY = "celebdit.run_key"
"""Run key of a training; on a pipeline run the keys of all its trainings, joined by commas."""
TAG_CHECKPOINT = "checkpoint.digest"
TAG_CHECKPOINT_URI = "checkpoint.uri"
TAG_EMA = "weights.ema"
"""Which of a checkpoint's weights, as `model.ema.EmaName` spells them in settings."""
TAG_DATASET = "dataset.digest"
TAG_LICENCE = "dataset.licence"

TAG_TRAINING_RUN = "training.run_id"
"""On a pipeline run, as all below: the MLflow run of its training."""
TAG_TRAINING_USE = "training.use"
"""Its number among the pipeline runs of that training, in the order in which they came to it: start times are by the clocks of machines."""
TAG_TRAINING_STEPS = "training.steps"
TAG_REUSED_FROM = "training.reused_from"
"""Id of the pipeline run whose finished training this one used."""
TAG_CONTINUED_FROM = "training.continued_from"
"""Id of the pipeline run whose training this one went on with."""
TAG_TRAINED_BY = "training.pipeline_run_id"
"""The MLflow run of that pipeline run."""
TAG_SCORE = "score"
"""The headline metric with half of its 95 % interval, for people."""
TAG_GRID = "samples.grid"
"""Artifact path of the sample grid."""
TAG_EVALUATION_RUN = "evaluation.run_id"
TAG_GATE = "gate.decision"
TAG_GATE_REASONS = "gate.reasons"
TAG_GATE_RUN = "gate.run_id"
TAG_MODEL = "model.name"
TAG_VERSION = "model.version"
TAG_VERSION_REUSED = "model.version_reused"
"""`true` if an earlier run registered the version."""

_USE_NUMBER = re.compile(r"[0-9]{1,9}")


def use_number(tags: Mapping[str, str]) -> int:
    """Return the number of a pipeline run with `tags` among those of its training, 0 for one of a former version."""
    number = tags.get(TAG_TRAINING_USE, "")
    return int(number) if _USE_NUMBER.fullmatch(number) else 0
