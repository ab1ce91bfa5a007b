"""Tags of a model version: what MLflow stores beside it, as one type.

Promises: `from_mlflow` reads the tags of every version that any release registered, and of versions made elsewhere; what is missing or
unreadable is None. `to_mlflow` gives each value that is set under its name; `to_version`, what a new version is stored with, has at most
eight tags, because MLflow's table of versions shows all of them: the others are in one tag, `details`, as JSON. Imports no MLflow.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from components.tracking.tags import TAG_CHECKPOINT, TAG_CHECKPOINT_URI, TAG_DATASET, TAG_EMA, TAG_LICENCE

PASSED = "passed"
"""Value of `trial` when a version has answered over HTTP."""
_MOST_DIGITS = 19
_METRIC_PREFIX = "eval/"
DETAILS = "details"
TRIAL = "serving.trial"
_SHOWN = (
    "gate.decision",
    "source",
    "source.sha256",
    "ema.sigma_rel",
    TAG_LICENCE,
    TAG_EMA,
    TAG_CHECKPOINT,
    TAG_DATASET,
    "manifest.digest",
    "files.lost",
    TRIAL,
)
"""Tags of their own, in the order of the table; no version has all of them."""


def _tag(name: str) -> Any:
    return field(default=None, metadata={"tag": name})


@dataclass(frozen=True, kw_only=True)
class VersionTags:
    """Where a version comes from, and what was decided about it: one tag per field, and one per metric."""

    checkpoint_digest: str | None = _tag(TAG_CHECKPOINT)
    ema: str | None = _tag(TAG_EMA)
    run_key: str | None = _tag("run_key")
    checkpoint_uri: str | None = _tag(TAG_CHECKPOINT_URI)
    checkpoint_step: int | None = _tag("checkpoint.step")
    dataset_digest: str | None = _tag(TAG_DATASET)
    licence: str | None = _tag(TAG_LICENCE)
    protocol_digest: str | None = _tag("protocol.digest")
    protocol_name: str | None = _tag("protocol.name")
    evaluation_uri: str | None = _tag("evaluation.uri")
    manifest_digest: str | None = _tag("manifest.digest")
    """sha256 of the manifest of all files; None for a version that was registered before versions had manifests."""
    files: str | None = _tag("files.lost")
    """Why the files of the version cannot be used any more, so that its weights were registered again; None if they can."""
    gate: str | None = _tag("gate.decision")
    """`pass` or `fail`; None for a version that the pipeline has not evaluated."""
    trial: str | None = _tag(TRIAL)
    """`passed`, or why the served model did not answer with an image."""
    source: str | None = _tag("source")
    """`imported` or `recombined`; None for a checkpoint of the pipeline."""
    source_sha256: str | None = _tag("source.sha256")
    sigma_rel: str | None = _tag("ema.sigma_rel")
    metrics: Mapping[str, float] = field(default_factory=dict)

    def to_mlflow(self) -> dict[str, str]:
        """Return the tags that are set, as MLflow stores them."""
        named = {item.metadata["tag"]: getattr(self, item.name) for item in fields(self) if "tag" in item.metadata}
        tags = {tag: str(value) for tag, value in named.items() if value is not None}
        return tags | {key: str(value) for key, value in self.metrics.items()}

    def to_version(self) -> dict[str, str]:
        """Return the tags of a new version: those that are shown, and the others as JSON in one."""
        tags = self.to_mlflow()
        shown = {name: tags[name] for name in _SHOWN if name in tags}
        details = {name: value for name, value in tags.items() if name not in shown}
        return shown | ({DETAILS: json.dumps(details, sort_keys=True)} if details else {})

    @classmethod
    def from_mlflow(cls, tags: Mapping[str, str]) -> "VersionTags":
        """Read the tags of a version."""
        tags = flat_tags(tags)
        values: dict[str, Any] = {item.name: tags.get(item.metadata["tag"]) for item in fields(cls) if "tag" in item.metadata}
        step = values.pop("checkpoint_step")
        metrics = {key: _number(value) for key, value in tags.items() if key.startswith(_METRIC_PREFIX)}
        return cls(
            **values,
            checkpoint_step=int(step) if step is not None and step.isdecimal() and len(step) < _MOST_DIGITS else None,
            metrics={key: value for key, value in metrics.items() if value is not None},
        )

    def is_of(self, checkpoint_digest: str, ema: str) -> bool:
        """Return whether the version holds the weights `ema` of this checkpoint."""
        return (self.checkpoint_digest, self.ema) == (checkpoint_digest, ema)


def flat_tags(tags: Mapping[str, str]) -> dict[str, str]:
    """Return the tags of a version with those in `details` beside the others; a tag of its own counts before one in there."""
    try:
        details = json.loads(tags.get(DETAILS, "{}"))
    except (ValueError, RecursionError):
        return dict(tags)
    if not isinstance(details, dict) or not all(isinstance(value, str) for value in details.values()):
        return dict(tags)
    return details | {name: value for name, value in tags.items() if name != DETAILS}


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
