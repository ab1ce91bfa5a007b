"""The run of a pipeline in MLflow: what its name, parameters, dataset and description say, and which texts are left alone."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from celebdit_testing.recipes import dataset_manifest, tiny_recipe
from celebdit_testing.registered import registry_context
from mlflow.entities import Param, Run
from mlflow.utils.time import get_current_time_millis

from components.resources import ResourcesConfig
from components.tracking.client import Tracking
from components.tracking.pipeline_run import Facts, describe_pipeline_run, training_tags
from components.tracking.run_parameters import pipeline_parameters, run_name
from components.tracking.tags import (
    CONFIG_FILE,
    TAG_GATE,
    TAG_GRID,
    TAG_MODEL,
    TAG_RUN,
    TAG_SCORE,
    TAG_TRAINING_USE,
    TAG_VERSION,
    TAG_VERSION_REUSED,
)
from pipeline.choosing.settings import settings_of
from pipeline.config import load_config
from pipeline.records import open_records
from pipeline.services import Endpoints, Services

RECIPE, DATASET = tiny_recipe(seed=7), dataset_manifest()
NOTE = "mlflow.note.content"
PARAMETERS = pipeline_parameters(RECIPE, DATASET, RECIPE.sampling, ResourcesConfig(processes=2, nodes=3), "celebahq256-b")


@pytest.fixture
def tracking_of(tmp_path: Path, no_endpoints: None) -> Iterator[Callable[[str], Tracking]]:
    """MLflow as the pipeline run with an id sees it."""
    with open_records(tmp_path / "home") as context:
        yield lambda run_id: Tracking(replace(context.settings, run_id=run_id, preset="celebahq256-b"))


def test_processes_that_log_the_same_parameters_at_once_all_succeed(embedded: Services, endpoints: Endpoints, tmp_path: Path) -> None:
    context = registry_context(endpoints, tmp_path)
    start = threading.Barrier(6)

    def log(run_id: str) -> None:
        tracking = Tracking(context.settings)
        start.wait()
        tracking.log_params(run_id, PARAMETERS)

    with ThreadPoolExecutor(6) as threads:
        for attempt in range(4):
            run_id = context.tracking.step_run("train", run_key=f"{attempt:016x}").info.run_id
            for done in [threads.submit(log, run_id) for _ in range(6)]:
                done.result()
            logged = context.tracking.client.get_run(run_id).data.params
            assert logged == {key: str(value) for key, value in PARAMETERS.items()}


def note_of(tracking: Tracking) -> str:
    return str(tracking.pipeline_run().data.tags.get(NOTE, ""))


def test_the_parent_says_what_the_run_is_and_repeating_it_changes_nothing(tracking_of: Callable[[str], Tracking]) -> None:
    tracking = tracking_of("run-1")
    before = tracking.pipeline_run()
    assert before.info.run_name == "run-1"
    trained = tracking.step_run("train", run_key="f" * 16)
    facts = Facts(
        tags={
            **training_tags(tracking, trained, steps=6, is_training=True),
            TAG_SCORE: "eval/fd 0.300 ± 0.020",
            TAG_GRID: "samples/grid.png",
        },
        name=run_name("celebahq256-b", RECIPE, DATASET),
        parameters=PARAMETERS,
        dataset=DATASET,
    )
    describe_pipeline_run(tracking, facts)
    first = tracking.pipeline_run()
    describe_pipeline_run(tracking, facts)
    run = tracking.pipeline_run()
    assert (run.info.run_name, run.data.params, run.data.tags) == (first.info.run_name, first.data.params, first.data.tags)
    assert run.info.run_name == "celebahq256-b x-pred lr1e-3 s7"
    assert len(run.data.params) <= 40
    for name, value in {
        "training.total_steps": "6",
        "optimizer.warmup_steps": "2",
        "optimizer.schedule": "constant",
        "optimizer.weight_decay": "0.01",
        "training.batch_images": "8",
        "training.ema_sigma_rel": "0.1",
        "sampling.sampler": "euler",
        "network.channels": "8, 16",
        "resources.ranks": "6",
        "data.source": "synthetic://",
    }.items():
        assert run.data.params[name] == value, name
    (dataset,) = run.inputs.dataset_inputs
    assert dataset.dataset.name == "faces"
    assert run.data.tags["mlflow.source.name"] == "celebdit celebahq256-b"
    note = note_of(tracking)
    assert note.startswith("**eval/fd 0.300 ± 0.020**")
    assert f"(#/experiments/{run.info.experiment_id}/runs/{trained.info.run_id}?" in note
    assert f"![samples](get-artifact?path=samples%2Fgrid.png&run_uuid={run.info.run_id})" in note
    assert "reused" not in note


def test_a_run_that_reuses_or_continues_a_training_leads_to_it(tracking_of: Callable[[str], Tracking]) -> None:
    first = tracking_of("run-1")
    trained: Run = first.step_run("train", run_key="f" * 16)
    parent = first.pipeline_run().info.run_id
    assert trained.data.tags[TAG_RUN] == "run-1"
    for name, verb in (("run-2", "reused"), ("run-3", "continued")):
        tracking = tracking_of(name)
        if verb == "continued":
            describe_pipeline_run(tracking, Facts(tags=training_tags(tracking, trained, steps=8, is_training=True)))
        describe_pipeline_run(tracking, Facts(tags=training_tags(tracking, trained, steps=8, is_training=False)))
        describe_pipeline_run(tracking, Facts(tags={TAG_MODEL: "faces", TAG_VERSION: "3", TAG_VERSION_REUSED: "true", TAG_GATE: "pass"}))
        run = tracking.pipeline_run()
        assert run.data.tags[f"training.{verb}_from"] == "run-1"
        assert run.data.tags["training.run_id"] == trained.info.run_id
        assert f"8 steps, {verb} from [run-1](#/experiments/{run.info.experiment_id}/runs/{parent}?" in run.data.tags[NOTE]
        assert "[faces 3](#/models/faces/versions/3?workflowType=machine_learning), registered by an earlier run" in run.data.tags[NOTE]


def test_the_newest_user_of_a_training_is_the_last_that_came_to_it_whatever_its_clock_says(
    endpoints: Endpoints, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now_ms, trained = get_current_time_millis(), None
    for number, clock_ms in enumerate((now_ms, now_ms - 3_600_000, now_ms - 1_800_000)):
        monkeypatch.setattr("mlflow.tracking._tracking_service.client.get_current_time_millis", lambda at_ms=clock_ms: at_ms)
        context = registry_context(endpoints, tmp_path, run_id=f"use-{number}")
        tracking = context.tracking
        trained = trained or tracking.step_run("train", run_key="c" * 16)
        parent = tracking.pipeline_run()
        assert parent.info.start_time == clock_ms
        tables = load_config("smoke", [f"evaluation.num_images={10 + number}"]).toml()
        tracking.log_text(parent.info.run_id, tables, CONFIG_FILE)
        for _ in range(2):
            describe_pipeline_run(tracking, Facts(tags=training_tags(tracking, trained, steps=8, is_training=False)))
        assert tracking.pipeline_run().data.tags[TAG_TRAINING_USE] == str(number + 1)
        assert settings_of("c" * 16, trained, None, (), context).evaluation.num_images == 10 + number
    assert settings_of("use-0", trained, None, (), context).evaluation.num_images == 10, "a run that is named by its id comes first"


def test_names_and_texts_that_a_person_wrote_are_kept(tracking_of: Callable[[str], Tracking]) -> None:
    tracking = tracking_of("run-1")
    run_id = tracking.pipeline_run().info.run_id
    tracking.client.update_run(run_id, name="the one for the paper")
    tracking.client.set_tag(run_id, NOTE, "my own words")
    describe_pipeline_run(tracking, Facts(tags={TAG_SCORE: "eval/fd 1"}, name="celebahq256-b x-pred lr1e-3 s7"))
    run = tracking.pipeline_run()
    assert (run.info.run_name, run.data.tags[NOTE], run.data.tags[TAG_SCORE]) == ("the one for the paper", "my own words", "eval/fd 1")


def test_parameters_stay_within_forty_where_somebody_logged_others(tracking_of: Callable[[str], Tracking]) -> None:
    tracking = tracking_of("run-1")
    run_id = tracking.pipeline_run().info.run_id
    tracking.client.log_batch(run_id, params=[Param(f"theirs.{number}", str(number)) for number in range(45)])
    describe_pipeline_run(tracking, Facts(tags={}, parameters=PARAMETERS))
    assert len(tracking.pipeline_run().data.params) == 45


@pytest.mark.parametrize(("lr", "text"), [(2e-4, "lr2e-4"), (1.5e-3, "lr1.5e-3"), (1.0, "lr1e0"), (0.00012345, "lr1.2345e-4")])
def test_without_a_preset_the_name_says_data_and_size(lr: float, text: str) -> None:
    recipe = RECIPE.model_copy(update={"optimizer": RECIPE.optimizer.model_copy(update={"lr_peak": lr})})
    assert run_name(None, recipe, DATASET) == f"faces w32 d1 x-pred {text} s7"
