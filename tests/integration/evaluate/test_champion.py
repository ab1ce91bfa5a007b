"""The champion beside a challenger, on real S3 and a real MLflow server: measured under the same protocol, beaten or not."""

from functools import partial
from pathlib import Path

import pytest
from celebdit_testing import evaluations
from celebdit_testing.evaluations import HEADLINE, SAMPLING, config, resources, run
from celebdit_testing.recipes import tiny_student
from celebdit_testing.trained import commit_checkpoint

from components.errors import TemporaryFailure
from components.evaluate import champion as champions
from components.evaluate.config import EvaluationConfig
from components.gate.config import GateConfig
from components.gate.gate import run as gate
from components.manifests import CheckpointManifest, DatasetManifest, EvaluationReport, GateDecision
from components.register.register import run as register
from components.registry.client import ModelVersion, Registry
from components.registry.config import RegistryConfig
from pipeline.services import Endpoints

PART = "champion"
place = partial(evaluations.place, part=PART)


@pytest.fixture(scope="module")
def checkpoint(environment: Endpoints, folder: Path, dataset: DatasetManifest) -> CheckpointManifest:
    return commit_checkpoint(place(environment, folder), folder, seed=103, dataset_digest=dataset.digest)


@pytest.mark.fault
@pytest.mark.slow
def test_a_better_challenger_passes_and_a_worse_one_leaves_the_champion_in_place(
    environment: Endpoints, tmp_path: Path, dataset: DatasetManifest, checkpoint: CheckpointManifest, folder: Path
) -> None:
    name, small = "duel", config(num_images=16, bootstrap_replicates=10)
    other = commit_checkpoint(place(environment, folder), folder, seed=202, dataset_digest=dataset.digest)
    contexts = iter(place(environment, tmp_path / str(n), run_id=f"duel-{n}") for n in range(8))

    def judged(candidate: CheckpointManifest, evaluation: EvaluationConfig) -> tuple[EvaluationReport, GateDecision]:
        context = next(contexts)
        report = run(candidate, dataset, evaluation, SAMPLING, resources(), name, context)
        decision, page = gate(report, GateConfig(), name, context)
        assert page.startswith("<!doctype html>")
        run_tags = context.tracking.client.get_run(context.tracking.step_run("gate").info.run_id).data.tags
        assert run_tags["gate.decision"] == decision.decision
        assert float(run_tags[f"challenger.{report.headline}"]) == pytest.approx(report.metrics[report.headline])
        if decision.decision == "pass":
            register(candidate, dataset, report, decision, SAMPLING, RegistryConfig(model_name=name), context)
        return report, decision

    registry = Registry(place(environment, tmp_path).tracking, name)
    worse, better = sorted((checkpoint, other), key=lambda one: -quality(one, environment, folder, dataset))
    _, first = judged(worse, config())
    assert first.champion_version is None
    registry.promote("1", reason="the only one", by="test")
    report, decision = judged(better, config())
    assert decision.decision == "pass", decision.reasons
    assert report.champion is not None
    assert report.champion.metrics[HEADLINE] > report.metrics[HEADLINE]
    registry.promote("2", reason="better", by="test")
    # Another protocol than the one that the champion was measured under: it is measured again, from the registry.
    report, decision = judged(worse, small)
    assert decision.decision == "fail", decision.reasons
    assert decision.champion_version == "2"
    assert "champion version 2" in decision.reasons[0]
    assert report.champion is not None
    assert set(report.champion.metrics) == set(report.metrics)
    assert registry.aliases()["champion"] == "2"
    assert [str(version.version) for version in registry.versions()] == ["1", "2"], "nothing was registered"
    # Another average of the champion's own checkpoint is another model: it is compared, not waved through.
    report = run(better, dataset, small, SAMPLING.model_copy(update={"ema": "none"}), resources(), name, next(contexts))
    assert report.champion is not None
    assert not report.champion.is_challenger
    assert report.champion.metrics[report.headline] != report.metrics[report.headline]
    assert run(better, dataset, small, SAMPLING, resources(), name, next(contexts)).champion.is_challenger
    registry.promote("1", reason="moved in between", by="test")
    with pytest.raises(TemporaryFailure, match="champion was version 2 when this was evaluated and is version 1"):
        gate(report, GateConfig(), name, next(contexts))


@pytest.mark.fault
@pytest.mark.slow
def test_beside_a_student_each_model_is_drawn_as_it_is_served(
    environment: Endpoints, tmp_path: Path, dataset: DatasetManifest, checkpoint: CheckpointManifest, folder: Path
) -> None:
    name, recipe = "students", tiny_student(steps=3)
    student = commit_checkpoint(place(environment, folder), folder, seed=303, dataset_digest=dataset.digest, recipe=recipe)
    contexts = iter(place(environment, tmp_path / str(n), run_id=f"students-{n}") for n in range(4))
    samplings = {checkpoint.digest: SAMPLING, student.digest: recipe.sampling}

    def measured(candidate: CheckpointManifest, model_name: str = name) -> EvaluationReport:
        return run(candidate, dataset, config(), samplings[candidate.digest], resources(), model_name, next(contexts))

    alone = {candidate.digest: measured(candidate, "no-model") for candidate in (checkpoint, student)}
    for number, (champion, challenger) in enumerate([(checkpoint, student), (student, checkpoint)], start=1):
        here = place(environment, tmp_path / "register", run_id=f"students-{number}")
        report = alone[champion.digest]
        passing = GateDecision(decision="pass", reasons=["the first"], checkpoint_digest=champion.digest)
        register(champion, dataset, report, passing, samplings[champion.digest], RegistryConfig(model_name=name), here)
        Registry(here.tracking, name).promote(str(number), reason="next", by="test")
        compared = measured(challenger)
        assert compared.metrics == alone[challenger.digest].metrics
        assert compared.champion is not None
        assert (compared.champion.version, compared.champion.metrics) == (str(number), report.metrics)
        own = samplings[champion.digest]
        assert compared.champion.sampling == f"{own.sampler}, {own.num_steps} steps"


def quality(checkpoint: CheckpointManifest, environment: Endpoints, folder: Path, dataset: DatasetManifest) -> float:
    report = run(checkpoint, dataset, config(), SAMPLING, resources(), "no-model", place(environment, folder / "quality"))
    return report.metrics[HEADLINE]


@pytest.mark.fault
@pytest.mark.slow
def test_a_champion_of_another_size_or_kind_is_not_beaten_unseen(
    environment: Endpoints, tmp_path: Path, dataset: DatasetManifest, checkpoint: CheckpointManifest
) -> None:
    here = place(environment, tmp_path, run_id="foreign")
    registry = Registry(here.tracking, "foreign")
    registry.ensure("made elsewhere")
    here.tracking.client.create_model_version("foreign", source="s3://bucket/nowhere", tags={"gate.decision": "pass"})
    registry.promote("1", reason="by hand", by="test")
    report = run(checkpoint, dataset, config(), SAMPLING, resources(), "foreign", here)
    assert report.champion is not None
    assert "cannot be measured" in str(report.champion.problem)
    assert gate(report, GateConfig(), "foreign", here)[0].decision == "fail"
    assert gate(report, GateConfig(no_worse_than_champion=False), "foreign", here)[0].decision == "pass"


@pytest.mark.fault
@pytest.mark.slow
@pytest.mark.parametrize("newer", [None, "1"])
def test_a_champion_that_is_deleted_while_it_is_looked_at_leaves_the_newer_one_or_none(
    newer: str | None, environment: Endpoints, tmp_path: Path, dataset: DatasetManifest, checkpoint: CheckpointManifest, monkeypatch
) -> None:
    name, here = f"deleted-at-{newer}", place(environment, tmp_path, run_id=f"deleted-at-{newer}")
    registry, client, opened = Registry(here.tracking, name), here.tracking.client, champions.open_champion
    registry.ensure("made elsewhere")
    for _ in range(2):
        client.create_model_version(name, source="s3://bucket/nowhere", tags={"gate.decision": "pass"})
    registry.set_alias("champion", "2")

    def delete_and_open(registry: Registry, version: ModelVersion, *more: object, **options: object) -> object:
        if version.version == "2":
            client.delete_model_version(name, "2")
            if newer is not None:
                registry.set_alias("champion", newer)
        return opened(registry, version, *more, **options)

    monkeypatch.setattr("components.evaluate.evaluate.open_champion", delete_and_open)
    report = run(checkpoint, dataset, config(), SAMPLING, resources(), name, here)
    assert (None if report.champion is None else report.champion.version) == newer
    gate(report, GateConfig(), name, here)
