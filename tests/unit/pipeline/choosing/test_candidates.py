"""Which weights of a training can be scored, what is refused, and when two scores differ."""

import json
from pathlib import Path

import pytest
from celebdit_testing.command import celebdit_here
from celebdit_testing.recipes import DIGEST, evaluation_protocol, tiny_recipe, trained_with

from components.errors import BadInput
from components.evaluate.config import EvaluationConfig
from components.manifests import CheckpointManifest, EvaluationReport, MetricInterval
from components.storage import StoreUri
from components.storage.reader import StoredFolder
from components.stores.checkpoint_names import COMMIT_FILE, QUARANTINE_FILE
from components.stores.layout import RunLayout
from model.ema import EmaName
from pipeline.choosing.candidates import MOST_CANDIDATES, Candidate, StoredWeights, choose_candidates
from pipeline.choosing.scores import Measured, best_of, verdict
from pipeline.choosing.settings import check_overrides, few_images

KEY = "0123456789abcdef"
NARROW, WIDE, OTHER = map(EmaName, ("0.05", "0.1", "0.07"))


@pytest.fixture
def store(tmp_path: Path) -> StoredFolder:
    return StoredFolder(tmp_path)


@pytest.fixture
def run(store: StoredFolder, tmp_path: Path) -> RunLayout:
    """Snapshots of steps 3, 6 and 9, of which 9 is corrupt, checkpoints of 6 and 7, of which 7 is not committed, and one average."""
    layout = RunLayout(StoreUri("bucket", "main") / "runs" / KEY)

    def put(folder: StoreUri, *names: str) -> None:
        for name in names:
            path = tmp_path / folder.bucket / folder.key / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"x")

    files = ("ema-0.05.safetensors", "ema-0.1.safetensors")
    for step in (3, 6, 9):
        put(layout.snapshots / f"step-{step:09d}" / "first", *files, COMMIT_FILE)
    put(layout.snapshots / "step-000000009" / "first", QUARANTINE_FILE)
    put(layout.checkpoints / "step-000000006" / "second", *files, "ema-classic.safetensors", "weights.safetensors", COMMIT_FILE)
    put(layout.checkpoints / "step-000000007" / "second", *files)
    put(layout.averages / "step-000000003" / "0.07", "ema-0.07.safetensors", COMMIT_FILE)
    return layout


def choose(stored: StoredWeights, steps: tuple[int, ...] = (), widths: tuple[float, ...] = ()) -> list[Candidate]:
    return choose_candidates(KEY, stored, steps=steps, widths=widths, tracked=(0.05, 0.1))


def test_every_step_that_is_stored_is_scored_with_the_tracked_widths(run: RunLayout, store: StoredFolder) -> None:
    stored = StoredWeights.find(run, store)
    assert [(entry.step, entry.ema) for entry in choose(stored)] == [(3, NARROW), (3, WIDE), (6, NARROW), (6, WIDE)]
    assert choose(stored, (6,), (0.05,)) == [Candidate(6, NARROW, run.checkpoints / "step-000000006" / "second")], "before its snapshot"
    assert choose(stored, (3,), (0.1,))[0].uri == run.snapshots / "step-000000003" / "first"
    assert choose(stored, (3, 6), (0.07, 0.070000001)) == [
        Candidate(3, OTHER, run.averages / "step-000000003" / "0.07"),
        Candidate(6, OTHER, None),
    ], "one is stored, one is computed, and widths that have one name are one"
    homes = [run.home_of(uri) for uri in (run.averages / "step-000000003" / "0.07", run.snapshots / "a", run.checkpoints / "a")]
    assert homes == [run.averages, run.snapshots, run.checkpoints]


def test_what_does_not_exist_is_refused_by_name() -> None:
    place = StoreUri("bucket", "x")
    stored = StoredWeights({step: {NARROW: place, WIDE: place} for step in (3, 6, 8)}, {3, 6})
    for steps, widths, message, hint in (
        ((7,), (), r"no checkpoint or snapshot of step 7$", "it has steps 3, 6, 8"),
        ((7, 6, 1), (), r"no checkpoint or snapshot of steps 1, 7$", "it has steps 3, 6, 8"),
        ((8,), (0.07,), r"no EMA of width 0.07 at step 8, only 0.05, 0.1$", "steps with an EMA snapshot: 3, 6"),
        ((), tuple(0.01 * n for n in range(1, 25)), "3 steps with 24 EMA widths are 72 combinations", "--steps and --sigma-rel"),
    ):
        with pytest.raises(BadInput, match=message) as refused:
            choose(stored, steps, widths)
        assert hint in str(refused.value.hint)
    assert len(choose(StoredWeights({n: {NARROW: place, WIDE: place} for n in range(MOST_CANDIDATES // 2)}))) == MOST_CANDIDATES
    with pytest.raises(BadInput, match="has no checkpoint or snapshot yet"):
        choose(StoredWeights())
    with pytest.raises(BadInput, match="tracks no power-function EMA"):
        choose_candidates(KEY, stored, steps=(), widths=(), tracked=())


@pytest.mark.parametrize(("steps", "widths"), [((), ()), ((5,), ()), ((), (0.07,)), ((9_999,), (0.07,)), (tuple(range(1, 9_000, 2)), ())])
def test_a_refusal_about_a_training_with_thousands_of_steps_is_short(steps: tuple[int, ...], widths: tuple[float, ...]) -> None:
    place = StoreUri("bucket", "x")
    stored = StoredWeights({step: {NARROW: place, WIDE: place} for step in (*range(10, 10_000, 10), 9_999)}, set(range(10, 10_000, 10)))
    with pytest.raises(BadInput) as refused:
        choose(stored, steps, widths)
    assert len(f"{refused.value.message} {refused.value.hint}") < 400


def measured(step: int, value: float, half: float | None) -> Measured:
    interval = {} if half is None else {"eval/fd": MetricInterval(low=value - half, high=value + half, std=half / 2)}
    report = EvaluationReport(
        uri="runs/x/evaluations/y",
        protocol_digest=DIGEST,
        protocol=evaluation_protocol(),
        run_key=KEY,
        checkpoint_uri="runs/x",
        checkpoint_digest=DIGEST,
        checkpoint_step=step,
        dataset_digest=DIGEST,
        headline="eval/fd",
        metrics={"eval/fd": value},
        intervals=interval,
        grid_uri="runs/x/grid.png",
    )
    checkpoint = CheckpointManifest(
        run_key=KEY, uri="runs/x", digest=DIGEST, step=step, dataset_digest=DIGEST, recipe=trained_with(tiny_recipe())
    )
    return Measured(Candidate(step, WIDE, None), checkpoint, report, None)


def test_candidates_differ_only_if_their_intervals_do_not_overlap() -> None:
    entries = [measured(1, 3.0, 0.4), measured(2, 2.0, 0.5), measured(3, 2.7, 0.3), measured(4, 2.5, None)]
    best = best_of(entries)
    assert best.candidate.step == 2
    assert [verdict(entry, best) for entry in entries] == ["worse", "best", "no difference shown", "no interval"]


def test_few_images_are_compared_without_copies_and_champion() -> None:
    full = EvaluationConfig(extractor="random-conv", metrics=("frechet", "spectrum", "copies"), num_images=5000)
    few = few_images(full, None)
    assert (few.num_images, few.metrics, few.memorisation, few.champion) == (1000, ("frechet", "spectrum"), False, False)
    assert few_images(full.model_copy(update={"num_images": 16}), None).num_images == 16, "never more than the full evaluation"
    assert few_images(full, 3000).num_images == 3000


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--sigma-rel", "0.05,0.4"), "--sigma-rel 0.4 must lie between 0 and 0.2887"),
        (("--sigma-rel", "nan"), "--sigma-rel nan must lie"),
        (("--sigma-rel", "wide"), "'wide' is not a list of widths, like 0.05,0.1"),
        (("--steps", "12,"), "'12,' is not a list of steps, like 1000,2000"),
        (("--num-images", "1"), "1 is not in the range"),
        (("training.total_steps=9",), "'training.total_steps=9' is not a setting of an evaluation"),
    ],
)
def test_a_wrong_option_starts_nothing(
    arguments: tuple[str, ...], message: str, tmp_path: Path, no_endpoints: None, capsys: pytest.CaptureFixture[str]
) -> None:
    done = celebdit_here("evaluate", KEY, *arguments, "--json", home=tmp_path / "home", capture=capsys)
    assert done.code == 2
    assert message in json.loads(done.out)["error"]["message"]
    assert not (tmp_path / "home").exists()


def test_sections_of_an_evaluation_can_be_overridden() -> None:
    check_overrides(["sampling.num_steps=8", "evaluation.extractor=random-conv", "gate.at_most={}", "registry.model_name=x"])
