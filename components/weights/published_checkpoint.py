"""Imports the published checkpoint `dit_final_12_f_250.pth` as a checkpoint and a model version.

Promises: the file is read safely, and every name and shape in it is checked, before anything is stored; the same file gives the same
checkpoint and version, however often. The network is in `model/seed_compat.py`.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from components.errors import DataRefused
from components.registry.tags import VersionTags
from components.runtime.context import StepContext
from components.serving.register_version import UnevaluatedModel, register_unevaluated
from components.storage import StoreUri, file_sha256
from components.stores.checkpoints import CheckpointStore
from components.system.work_folders import WorkFolder
from components.tracking.tags import TAG_CHECKPOINT
from components.weights.torch_files import read_tensors
from model.canonical import digest_of
from model.checkpoint import CheckpointState, publish
from model.config import ModelSpec, NetworkConfig
from model.ema import RAW_WEIGHTS
from model.seed_compat import OBJECTIVE, PUBLISHED, SAMPLING, TensorsMismatch, check_tensors, size_bytes

if TYPE_CHECKING:
    from components.tracking.client import Tracking

_KEY_CHARACTERS = 16
_SPARE_BYTES = 2**24
"""More than the pickle and the archive's directory take."""
_STEP = 0
"""The file does not record the step at which it was written."""


@dataclass(frozen=True)
class Source:
    """The tensors of the published file, checked against the network by name, shape and type."""

    name: str
    sha256: str
    tensors: dict[str, Tensor]
    network: NetworkConfig


@dataclass(frozen=True)
class Imported:
    """The result of an import."""

    run_key: str
    source_sha256: str
    num_tensors: int
    num_parameters: int
    checkpoint_digest: str
    uri: StoreUri
    version: str
    new: bool
    run_url: str


def read_published(path: Path, *, network: NetworkConfig = PUBLISHED) -> Source:
    """Read and check the published checkpoint in `path`; nothing is stored.

    Raises:
        BadInput: if there is no such file. DataRefused: if it is not the published network's plain state dictionary.
    """
    try:
        tensors = check_tensors(read_tensors(path, max_bytes=size_bytes(network) + _SPARE_BYTES), network)
    except TensorsMismatch as error:
        raise DataRefused(
            f"{path} is not the published checkpoint: {error}", hint="only the weights of dit_final_12_f_250.pth can be imported"
        ) from error
    return Source(name=path.name, sha256=file_sha256(path), tensors=tensors, network=network)


def import_published(source: Source, model_name: str, licence: str, context: StepContext) -> Imported:
    """Convert, store and register what `read_published` returned."""
    weights = _store(source, licence, context)
    with _import_run(source, weights, context.tracking) as run_id:
        version, new = register_unevaluated(weights, model_name, run_id, context)
        context.tracking.set_tags(run_id, {"model.name": model_name, "model.version": version})
        return Imported(
            run_key=weights.run_key,
            source_sha256=source.sha256,
            num_tensors=len(source.tensors),
            num_parameters=sum(tensor.numel() for tensor in source.tensors.values()),
            checkpoint_digest=weights.checkpoint.digest,
            uri=weights.uri,
            version=version,
            new=new,
            run_url=context.tracking.run_url(run_id),
        )


def _store(source: Source, licence: str, context: StepContext) -> UnevaluatedModel:
    """Store `source` as a checkpoint and return what a version is made from."""
    key = digest_of({"imported": source.sha256})[:_KEY_CHARACTERS]
    spec = ModelSpec(network=source.network, diffusion=OBJECTIVE, precision="float32")
    facts = {"identity": {"imported": source.sha256, **spec.model_dump(mode="json", exclude={"precision"})}}
    checkpoint = publish(CheckpointState(_STEP, {RAW_WEIGHTS.group: source.tensors}, facts), context.scratch(WorkFolder.IMPORTED, key))
    return UnevaluatedModel(
        checkpoint=checkpoint,
        ema_name=RAW_WEIGHTS,
        uri=CheckpointStore(context.store, context.layout.run(key).checkpoints).upload(checkpoint, "imported"),
        run_key=key,
        spec=spec,
        sampling=SAMPLING,
        licence=licence,
        card=_card(source, checkpoint.digest),
        tags=VersionTags(source="imported", source_sha256=source.sha256),
    )


@contextmanager
def _import_run(source: Source, weights: UnevaluatedModel, tracking: "Tracking") -> Iterator[str]:
    """Record the import in MLflow as a run that ends with the block; yield its id."""
    key, network, diffusion = weights.run_key, weights.spec.network, weights.spec.diffusion
    with (
        tracking.mark_running(tracking.pipeline_run()),
        tracking.mark_running(tracking.step_run("import", run_key=key, name=f"import-{key}")) as run_id,
    ):
        tracking.set_tags(run_id, {"source.file": source.name, "source.sha256": source.sha256, TAG_CHECKPOINT: weights.checkpoint.digest})
        tracking.log_params(
            run_id, {"network.codec": network.codec, "diffusion.path": diffusion.path, "diffusion.prediction": diffusion.prediction}
        )
        yield run_id


def _card(source: Source, digest: str) -> str:
    return (
        f"Imported from `{source.name}`, sha256 `{source.sha256}`, as checkpoint `{digest}`.\n\n"
        "The network predicts the clean image and ends in SiLU, so no pixel is darker than about 92 of 255. Its own sampler is ancestral "
        "over all 1000 timesteps (`sampler=ddpm`, `num_steps=1000`); fewer steps are faster and a little different.\n\n"
        "Not evaluated by the pipeline: promoting it needs `--force`.\n"
    )
