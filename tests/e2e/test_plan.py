"""`celebdit plan` looks where a run has been, and changes nothing there."""

import json
import shutil
from pathlib import Path

import psutil
import pytest
from celebdit_testing.command import Finished, celebdit_here
from celebdit_testing.faults import fault_proxy
from celebdit_testing.first_run import OTHER

from components.storage import StoreUri, connect
from components.storage.reader import StoredFolder
from components.stores.layout import StoreLayout
from components.stores.measured_speed import cpu_name
from pipeline.config import load_config
from pipeline.planning.plan import measured_speed
from pipeline.planning.steps import PlannedSteps, StoreView, plan_steps
from pipeline.server_commands import EMBEDDED_STORE
from pipeline.services import Endpoints, Services

pytestmark = pytest.mark.e2e


@pytest.fixture
def files(embedded: Services) -> StoreView:
    """The store of the finished run, read as files."""
    return StoreView(StoredFolder(embedded.home / "s3"), StoreLayout(StoreUri.parse(EMBEDDED_STORE)))


def actions(planned: PlannedSteps) -> list[str]:
    return [step.action for step in planned.steps]


def test_what_a_run_has_finished_is_reused(first_run: Finished, files: StoreView) -> None:
    planned = plan_steps(load_config("smoke"), files)
    assert actions(planned) == ["run", "reuse", "reuse", "reuse", "run", "run"]
    assert planned.run_key == first_run.json["run_key"]
    assert (planned.done_steps, planned.is_evaluated) == (12, True)
    reasons = " ".join(step.reason for step in planned.steps)
    assert first_run.json["dataset"]["digest"][:12] in reasons
    assert f"{first_run.json['score']['value']:.3f}" in reasons


def test_the_hours_are_those_that_a_finished_run_took(
    first_run: Finished, files: StoreView, embedded: Services, capfd: pytest.CaptureFixture[str]
) -> None:
    assert first_run.code == 0
    done = celebdit_here("plan", "smoke", "training.total_steps=1200", "--json", home=embedded.home, capture=capfd)
    (cpu,) = json.loads(done.out)["devices"]
    speed = measured_speed(load_config("smoke"), cpu_name(), files)
    assert speed is not None
    assert cpu["basis"].startswith(f"measured on run {speed.run_key}: ")
    assert cpu["training_hours"] >= (1200 - 12) * 8 / speed.images_per_s / 3600


@pytest.mark.parametrize(
    "override", ["network.width=64", "training.batch_images=16", "training.precision=bfloat16", "resources.processes=1"]
)
def test_a_run_with_another_network_precision_or_batch_measures_nothing(first_run: Finished, files: StoreView, override: str) -> None:
    assert first_run.code == 0
    assert measured_speed(load_config("smoke", [override]), cpu_name(), files) is None
    assert measured_speed(load_config("smoke"), "H100", files) is None


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("training.total_steps=20", ["run", "reuse", "continue", "run", "run", "run"]),
        ("optimizer.lr_peak=0.0123", ["run", "reuse", "run", "run", "run", "run"]),
        ("evaluation.bootstrap_replicates=17", ["run", "reuse", "reuse", "run", "run", "run"]),
        ("data.held_out=0.3", ["run", "run", "run", "run", "run", "run"]),
        ("data.source=/nowhere/images.zip", ["run", "unknown", "unknown", "run", "run", "run"]),
        ("data.licence_accepted_by=somebody", ["run", "run", "run", "run", "run", "run"]),
    ],
)
def test_what_an_override_changes_is_made_and_no_more(first_run: Finished, files: StoreView, override: str, expected: list[str]) -> None:
    assert first_run.code == 0
    assert actions(plan_steps(load_config("smoke", [override]), files)) == expected


def test_a_distillation_is_planned_with_the_weights_of_its_teacher(first_run: Finished, files: StoreView) -> None:
    key, sampling = first_run.json["run_key"], ["sampling.sampler=ddpm", "sampling.num_steps=4"]
    planned = plan_steps(load_config("smoke", [f"distill.teacher={key}", *sampling]), files)
    assert actions(planned) == ["run", "reuse", "run", "run", "run", "run"]
    assert planned.run_key not in (None, key)
    missing = plan_steps(load_config("smoke", [f"distill.teacher={'0' * 16}", *sampling]), files)
    assert actions(missing) == ["run", "reuse", "unknown", "run", "run", "run"]
    assert "there is no such training" in missing.steps[2].reason


def test_a_run_that_is_trained_beyond_what_is_asked_for_will_be_refused(
    first_run: Finished, files: StoreView, embedded: Services, tmp_path: Path
) -> None:
    """Of a run on a busy machine, earlier checkpoints are stored too, from which it could be continued."""
    shutil.copytree(embedded.home / "s3", tmp_path / "s3")
    last = f"step-{first_run.json['training_steps']:09d}"
    for folder in (tmp_path / "s3").rglob(f"{first_run.json['run_key']}/checkpoints/step-*"):
        if folder.name != last:
            shutil.rmtree(folder)
    planned = plan_steps(load_config("smoke", ["training.total_steps=6"]), StoreView(StoredFolder(tmp_path / "s3"), files.layout))
    assert actions(planned) == ["run", "reuse", "unknown", "run", "run", "run"]
    assert "it will be refused" in planned.steps[2].reason


def test_a_score_that_is_left_of_the_last_step_is_continued(
    first_run: Finished, files: StoreView, embedded: Services, tmp_path: Path
) -> None:
    shutil.copytree(embedded.home / "s3", tmp_path / "s3")
    last = f"step-{first_run.json['training_steps']:09d}"
    for path in (tmp_path / "s3").rglob(f"{first_run.json['run_key']}/checkpoints/{last}/*/COMMIT.json"):
        commit = json.loads(path.read_bytes())
        path.write_text(json.dumps({**commit, "notes": {**commit["notes"], "score_due": True}}))
    copy = StoreView(StoredFolder(tmp_path / "s3"), files.layout)
    scored = load_config("smoke", ["training.score_every_steps=12", "training.score_images=8"])
    assert actions(plan_steps(scored, copy)) == ["run", "reuse", "continue", "reuse", "run", "run"]
    assert plan_steps(scored, copy).steps[2].reason.endswith("step 12, whose score is left")
    assert actions(plan_steps(scored, files))[2] == "reuse"
    assert actions(plan_steps(load_config("smoke"), copy))[2] == "reuse", "no scores are configured"


@pytest.mark.parametrize("content", ["", "[]", '{"step": 12}', '{"digest": "d", "notes": 5}'])
def test_a_damaged_commit_makes_its_step_unknown_not_an_error(
    first_run: Finished, files: StoreView, embedded: Services, tmp_path: Path, content: str
) -> None:
    shutil.copytree(embedded.home / "s3", tmp_path / "s3")
    for path in (tmp_path / "s3").rglob(f"{first_run.json['run_key']}/checkpoints/*/*/COMMIT.json"):
        path.write_text(content)
    copy = StoreView(StoredFolder(tmp_path / "s3"), files.layout)
    planned = plan_steps(load_config("smoke"), copy)
    assert actions(planned) == ["run", "reuse", "reuse", "unknown", "run", "run"]
    assert "COMMIT.json is damaged" in planned.steps[3].reason
    scored = load_config("smoke", ["training.score_every_steps=12", "training.score_images=8"])
    assert actions(plan_steps(scored, copy)) == ["run", "reuse", "unknown", "run", "run", "run"]


def test_scores_of_more_images_than_the_dataset_has_will_be_refused(first_run: Finished, files: StoreView) -> None:
    count = first_run.json["dataset"]["num_images"]
    scored = [f"training.score_images={count + 1}", "training.score_every_steps=6"]
    planned = plan_steps(load_config("smoke", scored), files)
    assert actions(planned) == ["run", "reuse", "unknown", "run", "run", "run"]
    assert planned.steps[2].reason.startswith(f"training.score_images {count + 1}: samples are compared")
    assert planned.steps[2].reason.endswith(f"there are {count}: it will be refused")
    before_ingest = plan_steps(load_config("smoke", [*scored, "data.source=synthetic://?count=7&seed=1&size=64"]), files)
    assert actions(before_ingest) == ["run", "run", "unknown", "run", "run", "run"]
    assert before_ingest.steps[2].reason.endswith("there are 7: it will be refused")


@pytest.mark.fault
@pytest.mark.slow
def test_steps_that_are_left_are_counted(second_run: Finished, files: StoreView) -> None:
    overrides = [override for override in OTHER if "total_steps" not in override]
    done = second_run.json["training_steps"]
    planned = plan_steps(load_config("smoke", [*overrides, f"training.total_steps={done + 40}"]), files)
    assert planned.done_steps == done
    assert "40 steps left" in planned.steps[2].reason


def test_through_the_server_the_plan_is_the_same_and_nothing_is_written(
    first_run: Finished, files: StoreView, endpoints: Endpoints
) -> None:
    assert first_run.code == 0
    with fault_proxy(endpoints.s3_url) as proxy:
        through = StoreView(connect(proxy.endpoint, deadline_s=5.0), files.layout)
        config = load_config("smoke", ["training.total_steps=20"])
        assert plan_steps(config, through) == plan_steps(config, files)
    assert proxy.requests, "it went through the proxy"
    assert {request.split()[0] for request in proxy.requests} <= {"GET", "HEAD"}


def test_a_store_that_does_not_answer_makes_the_plan_unknown_not_an_error(files: StoreView) -> None:
    planned = plan_steps(load_config("smoke"), StoreView(None, files.layout, "object storage does not answer"))
    assert actions(planned) == ["run", "unknown", "unknown", "run", "run", "run"]
    assert planned.steps[1].reason == "object storage does not answer"


def test_the_command_starts_no_server_and_makes_no_home(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    before = {process.pid for process in psutil.Process().children(recursive=True)}
    done = celebdit_here("plan", "smoke", "--json", home=tmp_path / "home", capture=capfd)
    assert done.code == 0, done.err
    assert not (tmp_path / "home").exists()
    assert {process.pid for process in psutil.Process().children(recursive=True)} <= before
    plan = json.loads(done.out)
    assert [step["action"] for step in plan["steps"]] == ["run"] * 6
    assert plan["devices"][0]["basis"] == "measured here"
    assert plan["command"].endswith(f"run smoke --home {tmp_path / 'home'}")


@pytest.mark.fault
@pytest.mark.slow
def test_the_command_says_all_of_it_to_people(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    done = celebdit_here("plan", "celebahq256-b", "--accept-license", "a test", home=tmp_path / "home", capture=capfd)
    assert done.code == 0, done.err
    for part in ("preflight", "register", "GFLOP per image", "H100", "images per pass", "checkpoint", "not known", "start "):
        assert part in done.err
    assert all(len(line) <= 160 for line in done.err.splitlines())


def test_without_consent_it_says_what_would_be_refused(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    done = celebdit_here("plan", "celebahq256-b", home=tmp_path / "home", capture=capfd)
    assert done.code == 0
    assert "must be accepted before its images are ingested" in done.err
