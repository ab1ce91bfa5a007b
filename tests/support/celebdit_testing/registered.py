"""Versions in a registry on test servers: registered through the step, or bare where only their number matters."""

from pathlib import Path

import pytest
from celebdit_testing.first_run import made_once
from celebdit_testing.recipes import DIGEST, dataset_manifest, evaluation_protocol
from celebdit_testing.steps import step_context
from celebdit_testing.trained import commit_checkpoint

from components.manifests import CheckpointManifest, EvaluationReport, GateDecision
from components.register.register import run as register
from components.registry.client import Registry
from components.registry.config import RegistryConfig
from components.runtime.context import StepContext
from model.config import SamplingConfig
from model.description import VersionDescription
from pipeline.services import Endpoints, Services

SAMPLING = SamplingConfig(sampler="euler", num_steps=2, ema="0.1")


def description_of(checkpoint: CheckpointManifest, weights_sha256: str) -> VersionDescription:
    return VersionDescription(
        **dict(checkpoint.recipe.model_spec),
        sampling=SAMPLING,
        checkpoint_digest=checkpoint.digest,
        licence="CC0-1.0",
        weights_sha256=weights_sha256,
    )


def registry_context(endpoints: Endpoints, folder: Path, *, run_id: str = "run-1") -> StepContext:
    """A step's context on the embedded servers."""
    store = endpoints.environment["CELEBDIT_STORE"]
    return step_context("register", folder, store, endpoint=endpoints.s3_url, mlflow_uri=endpoints.mlflow_url, run_id=run_id)


def report_of(checkpoint: CheckpointManifest) -> EvaluationReport:
    return EvaluationReport(
        uri="runs/1/evaluations/1",
        protocol_digest="a" * 64,
        protocol=evaluation_protocol(ema=SAMPLING.ema),
        run_key=checkpoint.run_key,
        checkpoint_uri=checkpoint.uri,
        checkpoint_digest=checkpoint.digest,
        checkpoint_step=checkpoint.step,
        dataset_digest=DIGEST,
        headline="eval/fd_randconv_16",
        metrics={"eval/fd_randconv_16": 12.5, "eval/fd_randconv_16_std": 0.5},
        grid_uri="runs/1/evaluations/1/grid.png",
    )


def passed(checkpoint: CheckpointManifest) -> GateDecision:
    return GateDecision(decision="pass", reasons=["good"], checkpoint_digest=checkpoint.digest)


def registered(context: StepContext, checkpoint: CheckpointManifest, name: str, *, sampling: SamplingConfig = SAMPLING) -> str:
    report = report_of(checkpoint)
    config = RegistryConfig(model_name=name)
    return register(checkpoint, dataset_manifest(), report, passed(checkpoint), sampling, config, context).version


def registered_faces(embedded: Services, folder: Path) -> CheckpointManifest:
    """The checkpoint behind version 1 of the model "faces", which whichever test process asks first registers.

    Its local copy is below `folder`.
    """
    folder.mkdir(exist_ok=True)

    def make() -> str:
        endpoints = embedded.wait()
        with pytest.MonkeyPatch.context() as patch:
            for key, value in endpoints.environment.items():
                patch.setenv(key, value)
            odd = folder / "100%20 what? größe #b; it's"  # MLflow takes paths for URIs, here and there
            odd.mkdir()
            context = registry_context(endpoints, odd)
            checkpoint = commit_checkpoint(context, folder, seed=1)
            assert registered(context, checkpoint, "faces") == "1"
        return checkpoint.model_dump_json()

    return CheckpointManifest.model_validate_json(made_once(folder / "checkpoint.json", make))


def bare_versions(context: StepContext, name: str, count: int, *, gate: str = "pass") -> Registry:
    registry = Registry(context.tracking, name)
    registry.ensure(name)
    for _ in range(count):
        context.tracking.client.create_model_version(name, source="s3://bucket/nowhere", tags={"gate.decision": gate})
    return registry
