"""`celebdit evaluate` on a finished training: several steps and EMA widths under one protocol, a child in MLflow, the gate of the best."""

import json
import shlex
from pathlib import Path

import pytest
from celebdit_testing.command import Finished, celebdit_here
from celebdit_testing.registered import registered, registry_context
from celebdit_testing.signing_keys import write_keys
from celebdit_testing.trained import commit_checkpoint
from celebdit_testing.workers_here import workers_here

from components.environment import VERIFY_KEY
from components.evaluate.champion import NotMeasurable, open_champion
from components.manifests import CheckpointManifest
from components.register.register import _fetch_weights
from components.registry.client import Registry
from components.runtime.context import StepContext
from components.runtime.events import Events
from components.settings import Settings
from components.storage import StoreUri
from components.tracking.client import PARENT
from pipeline.services import Endpoints, Services

pytestmark = [pytest.mark.e2e, pytest.mark.fault, pytest.mark.slow]

KEY_OF_16 = "eval/fd_randconv_16"
IMPOSSIBLE = f'gate.at_most={{"{KEY_OF_16}" = 1e-6}}'


@pytest.fixture
def context(endpoints: Endpoints) -> StepContext:
    return StepContext(settings=Settings.from_environment(in_run=False), events=Events("test", None))


def test_the_best_of_several_steps_and_widths_is_judged_by_the_gate(
    first_run: Finished, embedded: Services, context: StepContext, capsys: pytest.CaptureFixture[str]
) -> None:
    key = first_run.json["run_key"]
    wanted = ("--steps", "9,12", "--sigma-rel", "0.07,0.1", "--num-images", "8", "--register", IMPOSSIBLE)
    progress: list[str] = []
    events = Events("evaluate", None, listener=lambda event: progress.append(str(event.facts.get("text"))))
    with workers_here(StepContext(settings=context.settings, events=events)) as starts:
        done = celebdit_here("evaluate", key[:8], *wanted, "--json", home=embedded.home, capture=capsys)
    assert done.code == 1, done.err
    assert [path.name for path in starts] == ["batch.json", "spec.json"], "one start for the four, one for the full evaluation"
    names = dict.fromkeys(text.partition(")")[0] for text in progress if "of step" in text)
    ways = {f"images of step {step}, EMA {ema}" for step in (9, 12) for ema in (0.07, 0.1)}
    assert {name.rpartition(" (")[0] for name in names} == ways
    assert [name.rpartition(" (")[2] for name in names] == [f"{number}/4" for number in (1, 2, 3, 4)]
    rows = {(row["step"], row["sigma_rel"]): row for row in done.json["candidates"]}
    assert list(rows) == [(9, 0.07), (9, 0.1), (12, 0.07), (12, 0.1)]
    assert rows[12, 0.1]["checkpoint_digest"] == first_run.json["checkpoint"]["digest"]
    folders = [row["checkpoint_uri"].split("/")[2] for row in rows.values()]
    assert (folders[0], *folders[2:]) == ("averages", "averages", "checkpoints")
    assert folders[1] in ("snapshots", "checkpoints"), "checkpoints are made by the clock"
    best = min(rows, key=lambda row: rows[row]["value"])
    assert (done.json["best"]["step"], done.json["best"]["sigma_rel"]) == best
    assert rows[best]["verdict"] == "best"
    assert rows[9, 0.1]["verdict"] == "worse"
    assert all(row["low"] < row["value"] < row["high"] for row in rows.values())

    # The full evaluation is that of the run, except for the EMA, and the gate is asked.
    registration = done.json["registration"]
    assert registration["gate"]["decision"] == "fail"
    assert registration["metric"] == KEY_OF_16
    assert registration["model"] is None
    assert "gate       fail" in done.err

    # MLflow has the scores below the training's run, a line per width.
    tracking = context.tracking
    trained = tracking.training_run(key)
    assert trained is not None
    name = f"choose-{done.json['protocol_digest'][:8]}"
    (logged,) = tracking.search_runs({"celebdit.step": name})
    assert logged.data.tags[PARENT] == trained.info.run_id
    assert logged.info.status == "FINISHED"
    assert tracking.logged_steps(logged.info.run_id, "eval/fd_randconv_8/sigma_rel_0.07") == {9, 12}
    table = json.loads(tracking.read_artifact(logged.info.run_id, "candidates.json"))
    assert table["best"] == done.json["best"]

    # What was measured is not measured again; an EMA that was computed is found.
    with workers_here() as starts:
        again = celebdit_here("evaluate", key, *wanted[:-2], IMPOSSIBLE, "--json", home=embedded.home, capture=capsys)
        assert (again.code, starts) == (0, [])
        assert again.json["candidates"] == done.json["candidates"]

        # The command that is printed registers under the settings of this one: it measures nothing new, and the same gate is asked.
        *command, option, home = shlex.split(again.err.partition("register it: ")[2].splitlines()[0])[1:]
        assert (option, home) == ("--home", str(embedded.home))
        printed = celebdit_here(*command, "--json", home=embedded.home, capture=capsys)
        assert (printed.code, starts) == (1, []), printed.err
        assert printed.json["registration"]["gate"] == registration["gate"]


def test_weights_of_a_computed_average_can_be_registered(
    first_run: Finished, embedded: Services, context: StepContext, tmp_path, capsys: pytest.CaptureFixture[str]
) -> None:
    key = first_run.json["run_key"]
    with workers_here():
        done = celebdit_here(
            "evaluate", key, "--steps", "12", "--sigma-rel", "0.07", "--num-images", "8", "--json", home=embedded.home, capture=capsys
        )
    (row,) = done.json["candidates"]
    checkpoint = CheckpointManifest.model_construct(run_key=key, uri=row["checkpoint_uri"], digest=row["checkpoint_digest"])
    assert _fetch_weights(checkpoint, "0.07", tmp_path, context).stat().st_size > 10_000


def test_what_cannot_be_measured_is_refused_before_anything_starts(
    first_run: Finished, embedded: Services, context: StepContext, capsys: pytest.CaptureFixture[str]
) -> None:
    key = first_run.json["run_key"]
    manifest = StoreUri.parse(first_run.json["dataset"]["uri"]) / "dataset.json"
    for arguments, message in (
        (("0" * 16,), "MLflow has no training run '0000000000000000'"),
        ((key, "--steps", "99"), "no checkpoint or snapshot of step 99"),
        (
            (key, "evaluation.memorisation=false", "evaluation.reference_split=held_out"),
            "evaluation.reference_split 'held_out' has no images",
        ),
        ((key, "evaluation.metrics=['density_coverage','frechet']", "--num-images", "4"), "'density_coverage' needs at least 6 images"),
        ((key, "--config", "no-such-preset"), "no-such-preset"),
        ((key, "evaluation.extractor=vgg16"), "needs weights"),
        ((key,), "there are no references to compare with"),
    ):
        held = context.store.get_bytes(manifest) if len(arguments) == 1 and arguments[0] == key else None
        if held is not None:
            context.store.delete(manifest)
        try:
            with workers_here() as starts:
                done = celebdit_here("evaluate", *arguments, home=embedded.home, capture=capsys)
        finally:
            if held is not None:
                context.store.put_bytes(manifest, held)
        assert (done.code, starts) == (2, []), (arguments, done.err)
        assert message in done.err
        assert "Traceback" not in done.err


def test_a_champion_that_the_configured_key_did_not_sign_is_not_compared_with(
    first_run: Finished,
    embedded: Services,
    context: StepContext,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    # A model of its own: other tests open that of the run meanwhile.
    wanted = ("evaluate", first_run.json["run_key"], "--steps", "12", "--num-images", "8", "--register", "registry.model_name=compared")
    with workers_here(context):
        done = celebdit_here(*wanted, "--sigma-rel", "0.1", home=embedded.home, capture=capsys)
    assert done.code == 0, done.err
    registry, keys = Registry(context.tracking, "compared"), write_keys(tmp_path / "key")
    registry.promote("1", reason="the only one", by="test")
    monkeypatch.setenv(VERIFY_KEY, str(keys.public))
    # Another average than the champion's is another model, so it is compared.
    wanted = (*wanted, "--sigma-rel", "0.07", IMPOSSIBLE, "--json")
    with workers_here(context) as starts:
        refused = celebdit_here(*wanted, home=embedded.home, capture=capsys)
    assert (refused.code, starts) == (3, []), refused.err
    assert f"is not signed, and the public key {keys.public} is set in {VERIFY_KEY}" in refused.err
    registry.sign("1", tmp_path / "files", keys.private)
    with workers_here(context):
        judged = celebdit_here(*wanted, home=embedded.home, capture=capsys)
    assert judged.code == 1, judged.err
    assert judged.json["registration"]["gate"]["decision"] == "fail"
    assert "cannot be measured" not in str(judged.json["registration"]["gate"]["reasons"])


def test_a_champion_that_loses_its_signature_meanwhile_is_not_measured(endpoints: Endpoints, tmp_path: Path) -> None:
    """The step's code verifies too: another version may have become the champion since the command looked."""
    context = registry_context(endpoints, tmp_path)
    assert registered(context, commit_checkpoint(context, tmp_path / "checkpoint", seed=12), "unsigned") == "1"
    key, registry = str(write_keys(tmp_path / "key").public), Registry(context.tracking, "unsigned")
    with pytest.raises(NotMeasurable, match="is not signed"):
        open_champion(registry, registry.version("1"), tmp_path / "files", verify_key=key)
    assert open_champion(registry, registry.version("1"), tmp_path / "files")[1].is_file()
