"""What was deleted, archived or renamed in MLflow, and names that deleted things still hold, on a real server: no unclear error."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from celebdit_testing.recipes import DIGEST, tiny_recipe, trained_with
from celebdit_testing.registered import SAMPLING, bare_versions, description_of, registry_context, report_of
from safetensors.numpy import save_file

from components.errors import BadInput, TrackingRefused
from components.manifests import CheckpointManifest
from components.registry.client import CHALLENGER, Registry
from components.registry.promotions.moves import Standing
from components.registry.tags import VersionTags
from components.registry.version_files import DESCRIPTION_FILE, WEIGHTS_FILE
from components.runtime.context import StepContext
from components.storage import file_sha256
from components.tracking.client import Tracking
from components.tracking.logged_models import LoggedModels
from pipeline.services import Endpoints


@pytest.fixture
def context(endpoints: Endpoints, tmp_path: Path, request: pytest.FixtureRequest) -> StepContext:
    """A step with an experiment of its own, which a test may delete."""
    context = registry_context(endpoints, tmp_path)
    name = f"deleted {request.node.name}"
    return StepContext(settings=replace(context.settings, experiment=name, run_id=name), events=context.events)


def deleted_experiment(tracking: Tracking) -> str:
    experiment_id = tracking.experiment_id
    tracking.client.delete_experiment(experiment_id)
    return experiment_id


def test_a_deleted_experiment_still_holds_its_name_and_the_error_says_how_to_restore_it(context: StepContext) -> None:
    experiment_id = deleted_experiment(context.tracking)
    with pytest.raises(BadInput, match="was deleted, and its name is taken") as refused:
        assert Tracking(context.settings).experiment_id
    assert f"mlflow experiments restore --experiment-id {experiment_id}" in str(refused.value.hint)
    context.tracking.client.restore_experiment(experiment_id)
    assert Tracking(context.settings).experiment_id == experiment_id


def test_an_experiment_that_is_deleted_during_a_run_is_said(context: StepContext) -> None:
    deleted_experiment(context.tracking)
    with pytest.raises(TrackingRefused, match="must be in the 'active' state") as refused:
        context.tracking.step_run("train", run_key="a" * 16)
    assert "mlflow experiments restore" in str(refused.value.hint)


def test_a_deleted_experiment_and_its_deleted_runs_do_not_matter_to_promotions(context: StepContext) -> None:
    run = context.tracking.step_run("train", run_key="b" * 16)
    registry = bare_versions(context, "without-experiment", 1)
    client = context.tracking.client
    client.create_model_version(registry.name, "s3://bucket/nowhere", run.info.run_id, tags={"gate.decision": "pass"})
    assert registry.promote("1", reason="r", by="ann") == Standing("1", None)
    deleted_experiment(context.tracking)
    again = Registry(Tracking(context.settings), registry.name)
    assert again.promote("2", reason="r", by="ann") == Standing("2", "1")
    assert again.rollback(reason="r", by="ann") == Standing("1", None)
    assert again.version("2").run_id == run.info.run_id


def test_a_deleted_run_is_made_again_under_its_name(context: StepContext) -> None:
    tracking = context.tracking
    run = tracking.step_run("train", run_key="c" * 16)
    tracking.client.delete_run(run.info.run_id)
    with pytest.raises(TrackingRefused, match="Current state is deleted") as refused:
        tracking.set_tags(run.info.run_id, {"a": "b"})
    assert "mlflow runs restore" in str(refused.value.hint)
    again = tracking.step_run("train", run_key="c" * 16)
    assert again.info.run_id != run.info.run_id
    assert again.info.run_name == run.info.run_name
    assert tracking.training_run("c" * 16).info.run_id == again.info.run_id  # type: ignore[union-attr]


def test_a_version_whose_logged_model_and_run_were_deleted_is_still_opened_and_not_registered_twice(
    context: StepContext, tmp_path: Path
) -> None:
    weights = tmp_path / "model" / "artifacts" / WEIGHTS_FILE
    weights.parent.mkdir(parents=True)
    save_file({"a": np.zeros(3, dtype=np.float32)}, weights)
    recipe = trained_with(tiny_recipe())
    checkpoint = CheckpointManifest(run_key="d" * 16, uri="s3://b/x", digest="e" * 64, step=7, dataset_digest=DIGEST, recipe=recipe)
    description_of(checkpoint, file_sha256(weights)).write(weights.parent / DESCRIPTION_FILE)
    tracking, registry = context.tracking, Registry(context.tracking, "without-logged-model")
    registry.ensure("faces")
    run_id = tracking.step_run("train", run_key=checkpoint.run_key).info.run_id
    logged_models = LoggedModels(tracking)

    def register() -> tuple[str, str]:
        model_id = logged_models.log_evaluation(run_id, report_of(checkpoint))
        tags = VersionTags(checkpoint_digest=checkpoint.digest, ema=SAMPLING.ema, gate="pass")
        version = registry.add_version(tmp_path / "model", tags=tags, model_id=model_id, run_id=run_id, description="")
        return model_id, str(version.version)

    model_id, version = register()
    tracking.client.delete_logged_model(model_id)
    assert registry.files_of(version, tmp_path / "files").weights.read_bytes() == weights.read_bytes()
    assert logged_models.find(checkpoint.digest, SAMPLING.ema) is None
    again, same = register()
    assert (again != model_id, same) == (True, version)
    tracking.client.delete_run(run_id)
    assert registry.files_of(version, tmp_path / "more").weights.read_bytes() == weights.read_bytes()
    assert registry.promote(version, reason="r", by="ann") == Standing(version, None)


def test_an_archived_champion_stays_champion_and_an_archived_version_is_promoted_with_a_word(context: StepContext) -> None:
    registry = bare_versions(context, "archived", 2)
    registry.promote("1", reason="r", by="ann")
    for version in ("1", "2"):
        context.tracking.client.transition_model_version_stage("archived", version, "Archived")
    assert str(registry.resolve("champion").version) == "1"
    notes: list[str] = []
    assert registry.promote("2", reason="r", by="ann", note=notes.append) == Standing("2", "1")
    assert notes == ["version 2 is in the stage Archived of MLflow; stages are not used, so it is promoted all the same"]


def test_an_alias_of_a_deleted_version_is_gone_and_its_number_is_not_given_again(context: StepContext) -> None:
    registry = bare_versions(context, "numbers", 2)
    registry.set_alias(CHALLENGER, "2")
    context.tracking.client.delete_model_version("numbers", "2")
    with pytest.raises(BadInput, match="no alias 'challenger'") as refused:
        registry.resolve(CHALLENGER)
    assert refused.value.hint == "it has no aliases"
    with pytest.raises(BadInput, match="no version '2'"):
        registry.promote("2", reason="r", by="ann")
    made = context.tracking.client.create_model_version("numbers", source="s3://bucket/nowhere")
    assert str(made.version) == "3"


def test_a_name_that_a_prompt_holds_is_refused_for_a_model(context: StepContext) -> None:
    context.tracking.client.register_prompt("a-prompt", "draw {{what}}")
    with pytest.raises(BadInput, match="is the name of a prompt") as refused:
        Registry(context.tracking, "a-prompt").ensure("faces")
    assert "registry.model_name" in str(refused.value.hint)


def test_the_steps_of_a_run_stay_together_when_its_experiment_is_renamed_meanwhile(context: StepContext) -> None:
    first = context.tracking
    pipeline, train = first.pipeline_run(), first.step_run("train", run_key="d" * 16)
    first.client.rename_experiment(first.experiment_id, f"{context.settings.experiment} for the paper")
    later = Tracking(context.settings)
    assert later.pipeline_run().info.run_id == pipeline.info.run_id
    assert later.step_run("train", run_key="d" * 16).info.run_id == train.info.run_id
    assert later.step_run("evaluate").info.experiment_id == pipeline.info.experiment_id
    other_run = Tracking(replace(context.settings, run_id="another run"))
    assert other_run.pipeline_run().info.experiment_id != pipeline.info.experiment_id
    assert other_run.client.get_experiment(other_run.experiment_id).name == context.settings.experiment


def test_a_run_of_the_same_name_in_another_experiment_is_another(context: StepContext) -> None:
    """A renamed experiment is found by the name that it had."""
    pipeline = context.tracking.pipeline_run()
    elsewhere = Tracking(replace(context.settings, experiment=f"{context.settings.experiment} elsewhere"))
    assert elsewhere.pipeline_run().info.experiment_id != pipeline.info.experiment_id
    assert elsewhere.client.get_experiment(elsewhere.experiment_id).name == elsewhere.settings.experiment
