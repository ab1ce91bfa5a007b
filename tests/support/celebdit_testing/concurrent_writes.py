"""Calls of MLflow that several steps can make at the same moment, with what must be there afterwards."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from celebdit_testing.recipes import DIGEST, dataset_manifest, evaluation_protocol

from components.manifests import EvaluationReport
from components.registry.client import Registry
from components.registry.tags import VersionTags
from components.runtime.context import StepContext
from components.tracking.client import Tracking
from components.tracking.logged_models import LoggedModels
from components.tracking.metric_points import Point

CALLERS = 6
PARAMETERS = {f"section.setting_{number}": number for number in range(30)}
TAGS = {f"tag_{number}": f"value {number}" for number in range(10)}


def race(context: StepContext, call: Callable[[Tracking, int], object]) -> None:
    """Run `call` with a connection to MLflow and a number in `CALLERS` threads that begin together; its errors are raised.

    A thread is another client to the server, as a process would be.
    """
    start = threading.Barrier(CALLERS)

    def run(number: int) -> None:
        tracking = Tracking(context.settings)
        _ = tracking.experiment_id
        start.wait(timeout=60)
        call(tracking, number)

    with ThreadPoolExecutor(CALLERS) as threads:
        for done in [threads.submit(run, number) for number in range(CALLERS)]:
            done.result()


def new_run(context: StepContext, attempt: int, what: str) -> str:
    return str(context.tracking.step_run("train", run_key=f"{what}-{attempt}").info.run_id)


def new_version(context: StepContext, name: str) -> tuple[Registry, str]:
    registry = Registry(context.tracking, name)
    registry.ensure("a model")
    return registry, str(context.tracking.client.create_model_version(name, source="s3://bucket/model").version)


def same_parameters(context: StepContext, attempt: int) -> None:
    run_id = new_run(context, attempt, "parameters")
    race(context, lambda tracking, number: tracking.log_params(run_id, PARAMETERS))
    assert context.tracking.client.get_run(run_id).data.params == {key: str(value) for key, value in PARAMETERS.items()}


def other_values_of_the_same_parameters(context: StepContext, attempt: int) -> None:
    """The first value of each stands, and what only one caller logs is there."""
    run_id = new_run(context, attempt, "other-parameters")
    race(context, lambda tracking, number: tracking.log_params(run_id, {"shared": number, "shared too": number, f"own_{number}": number}))
    logged = context.tracking.client.get_run(run_id).data.params
    assert logged.pop("shared") == logged.pop("shared too")
    assert logged == {f"own_{number}": str(number) for number in range(CALLERS)}


def same_tags(context: StepContext, attempt: int) -> None:
    run_id = new_run(context, attempt, "tags")
    race(context, lambda tracking, number: tracking.set_tags(run_id, TAGS))
    assert TAGS.items() <= context.tracking.client.get_run(run_id).data.tags.items()


def same_metrics(context: StepContext, attempt: int) -> None:
    run_id = new_run(context, attempt, "metrics")
    points = [Point(f"metric_{key}", step, 0.5, 1000 + step) for key in range(10) for step in range(3)]
    race(context, lambda tracking, number: tracking.log_metrics(run_id, points))
    assert len(context.tracking.client.get_run(run_id).data.metrics) == 10
    assert context.tracking.logged_steps(run_id, "metric_3") == {0, 1, 2}


def same_dataset_of_different_runs(context: StepContext, attempt: int) -> None:
    run_ids = [new_run(context, attempt, f"dataset-{number}") for number in range(CALLERS)]
    manifest = dataset_manifest(name=f"faces {attempt}")
    race(context, lambda tracking, number: tracking.log_dataset(run_ids[number], manifest, context="training"))
    for run_id in run_ids:
        inputs = context.tracking.client.get_run(run_id).inputs.dataset_inputs
        assert [entry.dataset.name for entry in inputs] == [manifest.name]


def same_dataset_of_one_run(context: StepContext, attempt: int) -> None:
    run_id = new_run(context, attempt, "dataset")
    manifest = dataset_manifest(name=f"one {attempt}")
    race(context, lambda tracking, number: tracking.log_dataset(run_id, manifest, context="training"))
    inputs = context.tracking.client.get_run(run_id).inputs.dataset_inputs
    assert {entry.dataset.name for entry in inputs} == {manifest.name}


def same_version_tags(context: StepContext, attempt: int) -> None:
    registry, version = new_version(context, f"tagged-{attempt}")
    tags = VersionTags(checkpoint_digest="a" * 64, ema="0.1", files="lost")
    race(context, lambda tracking, number: Registry(tracking, registry.name).tag_version(version, tags))
    assert tags.to_mlflow().items() <= registry.version(version).tags.items()


def same_alias(context: StepContext, attempt: int) -> None:
    registry, version = new_version(context, f"pointed-{attempt}")
    race(context, lambda tracking, number: Registry(tracking, registry.name).set_alias("challenger", version))
    assert registry.aliases() == {"challenger": version}


def evaluation_of(digest: str) -> EvaluationReport:
    """Return the report of an evaluation of step 1 of a training, whose checkpoint has `digest`, with ten metrics."""
    return EvaluationReport(
        uri="runs/1/evaluations/1",
        protocol_digest="a" * 64,
        protocol=evaluation_protocol(ema="0.1"),
        run_key="1" * 16,
        checkpoint_uri="runs/1/checkpoints/step-1",
        checkpoint_digest=digest,
        checkpoint_step=1,
        dataset_digest=DIGEST,
        headline="eval/metric_0",
        metrics={f"eval/metric_{number}": 0.5 for number in range(10)},
        grid_uri="runs/1/evaluations/1/grid.png",
    )


def same_evaluation(context: StepContext, attempt: int) -> None:
    run_id = new_run(context, attempt, "evaluation")
    report = evaluation_of(f"{attempt:064x}")
    model = LoggedModels(context.tracking).find_or_create(
        run_id, name="step-1", digest=report.checkpoint_digest, ema="0.1", uri=report.checkpoint_uri, run_key=report.run_key
    )
    race(context, lambda tracking, number: LoggedModels(tracking).log_evaluation(run_id, report))
    assert {metric.key for metric in context.tracking.client.get_logged_model(model.model_id).metrics} == report.metrics.keys()
    assert report.metrics.keys() <= context.tracking.client.get_run(run_id).data.metrics.keys()


def same_model(context: StepContext, attempt: int) -> None:
    name = f"created-{attempt}"
    race(context, lambda tracking, number: Registry(tracking, name).ensure("a model"))
    assert Registry(context.tracking, name).versions() == []


def same_experiment(context: StepContext, attempt: int) -> None:
    fresh = replace(context, settings=replace(context.settings, experiment=f"experiment {attempt}"))
    ids = set()

    def create(tracking: Tracking, number: int) -> None:
        other = Tracking(fresh.settings)
        ids.add(other.experiment_id)

    race(context, create)
    assert len(ids) == 1


WRITES = {
    write.__name__: write
    for write in (
        same_parameters,
        other_values_of_the_same_parameters,
        same_tags,
        same_metrics,
        same_dataset_of_different_runs,
        same_dataset_of_one_run,
        same_version_tags,
        same_alias,
        same_evaluation,
        same_model,
        same_experiment,
    )
}
