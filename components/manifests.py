"""Manifests: the small, typed JSON files through which steps exchange data.

Promises: `load` refuses a manifest of another kind or with other fields; every manifest has the digest of what it describes, so that a
consumer can verify the bytes behind the URI. A URI is a key relative to CELEBDIT_STORE (`store_keys.py`).
"""

from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ModelWrapValidatorHandler, ValidationError, computed_field, model_validator

from components.errors import DataRefused
from components.store_keys import StoreKey
from model.canonical import canonical_json, digest_of
from model.config import TrainingRecipe

SHA256 = Field(pattern=r"^[0-9a-f]{64}$")
Split = Literal["train", "held_out"]
"""The parts of a dataset."""
ReferenceSplit = Literal[Split, "all"]
"""Which images of a dataset an evaluation compares with."""


class Manifest(BaseModel):
    """Base of all manifests: strict, immutable, written as canonical JSON."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid", allow_inf_nan=False)

    def dump(self, path: Path) -> None:
        """Write the manifest to `path`."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(canonical_json(self.model_dump(mode="json")))

    @classmethod
    def parse(cls, raw: bytes, *, origin: str) -> Self:
        """Read a manifest from bytes; `origin` names their source in errors.

        Raises:
            DataRefused: if they are not a manifest of this kind.
        """
        try:
            return cls.model_validate_json(raw)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"]) or "the document"
            raise DataRefused(f"{origin} is not a {cls.__name__}: {where}: {first['msg']}") from error

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a manifest from a file."""
        try:
            raw = path.read_bytes()
        except OSError as error:
            raise DataRefused(f"no {cls.__name__} at {path}: {error.strerror}") from error
        return cls.parse(raw, origin=str(path))


class Shard(BaseModel):
    """One tar of a dataset."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid")

    name: str
    sha256: str = SHA256
    size_bytes: int
    num_images: int


LICENCE_NOT_REQUIRED = "not required"
"""Of a dataset whose licence asks for no acceptance."""


class DatasetManifest(Manifest):
    """A committed dataset: `dataset.json`, written last, and the output of the ingest step."""

    kind: Literal["dataset"] = "dataset"
    name: str
    uri: StoreKey
    digest: str = SHA256
    image_px: int
    num_images: int
    num_held_out: int = 0
    rejected: dict[str, int]
    accepted: dict[str, int] = Field(default_factory=dict)
    ignored: int = 0
    licence: str
    licence_accepted_by: str
    source: str
    shards: list[Shard]
    table_sha256: str = SHA256
    tools: dict[str, str]


class CheckpointReference(Manifest):
    """A checkpoint by its run, place, content and step."""

    run_key: str
    uri: StoreKey
    digest: str = SHA256
    step: int
    dataset_digest: str = SHA256


class CheckpointManifest(CheckpointReference):
    """A trained checkpoint: the output of the train step."""

    kind: Literal["checkpoint"] = "checkpoint"
    recipe: TrainingRecipe


NORMAL_QUANTILE = 1.959964
"""Of the standard normal distribution: 95 % of it lie between this and its negative."""


class MetricInterval(BaseModel):
    """How far a metric may be off: its standard error and its 95 % interval."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid", allow_inf_nan=False)

    low: float
    high: float
    std: float

    def text(self) -> str:
        """Return the interval in words."""
        return f"{self.low:.5g} to {self.high:.5g}"


class ChampionScores(BaseModel):
    """The champion's metrics under the protocol of the report that contains them, but for `sampling`, or why there are none."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid", allow_inf_nan=False)

    version: str
    checkpoint_digest: str | None = None
    """Of the version, whose number can be that of another one later; None in reports of earlier releases and of versions without one."""
    is_challenger: bool = False
    """Whether the report's own weights are the champion's, so that there is nothing to compare."""
    sampling: str | None = Field(None, exclude_if=lambda sampling: sampling is None)
    """How its images are drawn, like "heun, 20 steps, time_shift 3.0", where one of both is a student of few steps and they differ."""
    metrics: dict[str, float] = Field(default_factory=dict)
    intervals: dict[str, MetricInterval] = Field(default_factory=dict)
    grid_uri: StoreKey | None = None
    problem: str | None = None


class EvaluationProtocol(BaseModel):
    """How the metrics of one report were measured, and on which weights.

    Everything that moves a metric by design is in `digest`: two reports with equal digests may be compared. `name`, `ema` and the
    checkpoint say what was measured, not how, and are not in it. What a single metric adds (`kid`, `memorisation`, ...) is an extra field,
    so that reports with metrics that this version does not have can be read. The named protocols are in `components/evaluate/protocol.py`.
    """

    model_config = ConfigDict(strict=True, frozen=True, extra="allow", allow_inf_nan=False)
    __pydantic_extra__: dict[str, JsonValue]

    name: str
    """A published protocol's name if all of it was kept, else "custom"."""
    num_images: int
    num_reference: int
    reference_split: ReferenceSplit
    reference_flip: bool
    dataset_digest: str = SHA256
    image_px: int
    codec: str
    """`png`, or `jpeg-q` and the quality."""
    resize: Literal["none"]
    extractor: str
    """The feature extractor, its weights' sha256 or its source's included."""
    extractor_sha256: str | None
    metrics: tuple[str, ...] = Field(strict=False)  # an array in JSON
    bootstrap_replicates: int
    sampling: dict[str, JsonValue]
    """The `sampling` section without `ema`, as it was stored: later settings and defaults must not change the digest."""
    ema: str
    """Which average of the checkpoint's weights was measured; "none" for the raw weights."""
    checkpoint_digest: str = SHA256
    checkpoint_step: int

    @computed_field  # type: ignore[prop-decorator]
    @property
    def digest(self) -> str:
        """Identity of the protocol."""
        return digest_of(self.model_dump(mode="json", exclude=_OUTSIDE_PROTOCOL_DIGEST))

    @model_validator(mode="wrap")
    @classmethod
    def _verify_digest(cls, fields: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        stored = fields.get("digest") if isinstance(fields, dict) else None
        protocol = handler(fields if stored is None else {key: value for key, value in fields.items() if key != "digest"})
        if stored is not None and stored != protocol.digest:
            raise ValueError(f"the protocol has digest {protocol.digest}, its report has {stored}")
        return protocol


_OUTSIDE_PROTOCOL_DIGEST = {"name", "digest", "ema", "checkpoint_digest", "checkpoint_step"}


class EvaluationReport(Manifest):
    """Metrics of one checkpoint under one protocol: the output of the evaluate step."""

    kind: Literal["evaluation"] = "evaluation"
    uri: StoreKey
    protocol_digest: str = SHA256
    protocol: EvaluationProtocol
    run_key: str
    checkpoint_uri: StoreKey
    checkpoint_digest: str = SHA256
    checkpoint_step: int
    dataset_digest: str = SHA256
    headline: str
    metrics: dict[str, float]
    intervals: dict[str, MetricInterval] = Field(default_factory=dict)
    grid_uri: StoreKey
    contact_uri: StoreKey | None = None
    champion: ChampionScores | None = None

    def metric_rows(self) -> list[tuple[str, float, MetricInterval | None]]:
        """Return the metrics for people: the headline first, the others by name, each with its interval in place of its standard error."""
        errors = {f"{key}_std" for key in self.intervals}
        keys = sorted(self.metrics.keys() - errors, key=lambda key: (key != self.headline, key))
        return [(key, self.metrics[key], self.intervals.get(key)) for key in keys]

    @property
    def ema(self) -> str:
        """Which average of the checkpoint's weights was measured."""
        return self.protocol.ema


class GateDecision(Manifest):
    """Pass or fail, and why: the output of the gate step."""

    kind: Literal["gate"] = "gate"
    decision: Literal["pass", "fail"]
    reasons: list[str]
    checkpoint_digest: str = SHA256
    champion_version: str | None = None
    page_uri: StoreKey | None = None


class RegisteredVersion(Manifest):
    """A model version in the registry: the output of the register step."""

    kind: Literal["version"] = "version"
    name: str
    version: str
    aliases: list[str]
    checkpoint_digest: str = SHA256
    model_uri: str
