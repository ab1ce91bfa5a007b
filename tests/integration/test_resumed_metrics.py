"""A resumed run reports the metrics of the run that was left alone: any interval, any step, any number of ranks before and after."""

import random
from pathlib import Path

import pytest
from celebdit_testing.stretches import Metrics, Stretch, train_stretches

from model.checkpoint_manifest import directory_name

pytestmark = [pytest.mark.fault, pytest.mark.slow]

STEPS = 13
INTERVALS = (2, 5, 10)
SIZES = (1, 2, 3)
WINDOW_METRICS = ("train/loss", "train/grad_norm", "train/lr")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[int, int], tuple[Path, Metrics]]:
    """The checkpoints of every step and the metrics of a whole run, by the number of ranks and the interval."""
    root = tmp_path_factory.mktemp("undisturbed")
    runs = {}
    for size in SIZES:
        stretches = [Stretch(root / f"{size}-{interval}", interval, STEPS) for interval in INTERVALS]
        for stretch, metrics in zip(stretches, train_stretches(stretches, root / str(size), size=size), strict=True):
            runs[size, stretch.log_every_steps] = (stretch.folder, metrics)
    return runs


def of_window(metrics: Metrics, *, after: int, until: int) -> Metrics:
    return {key: value for key, value in metrics.items() if key[0] in WINDOW_METRICS and after < key[1] <= until}


@pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{size}-ranks")
def test_a_resumed_run_reports_the_metrics_of_a_run_without_a_break(
    undisturbed: dict[tuple[int, int], tuple[Path, Metrics]], tmp_path: Path, size: int
) -> None:
    """Each draw continues, with `size` ranks, a run of each number of ranks from within a window, up to its next metric point."""
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    cases = []
    for before in SIZES:
        for interval in INTERVALS:
            step = chance.choice([step for step in range(1, STEPS - 1) if step % interval])
            folder, whole = undisturbed[before, interval]
            stretch = Stretch(
                tmp_path / f"{before}-{interval}", interval, STEPS, folder / directory_name(step), step - step % interval + interval
            )
            cases.append((before, step, whole, stretch))
    resumed = train_stretches([stretch for *_, stretch in cases], tmp_path / "ranks", size=size)
    for (before, step, whole, stretch), metrics in zip(cases, resumed, strict=True):
        reported = of_window(metrics, after=step, until=STEPS)
        assert reported, "the stretch includes a metric point"
        expected = of_window(whole, after=step, until=max(at for _, at in reported))
        if before == size:
            assert reported == expected, f"{stretch} of {before} ranks, seed {seed}: every bit"
        else:
            assert reported == pytest.approx(expected, rel=1e-3), f"{stretch} of {before} ranks, seed {seed}: up to the order of sums"
