"""The comparison of runs: what is in the table, which steps are shown, what the image looks like."""

import json
from types import SimpleNamespace

import numpy as np
import pytest

from components.errors import DataRefused
from components.reports.flatten import flatten
from components.tracking.image_names import step_of_image
from pipeline.commands.compare import _grid, _settings
from pipeline.comparison import Evaluation, RunFacts, best_columns, common_steps, last_steps, rows, same_seeds, side_by_side


def run(name: str, *, evaluations: list[Evaluation] | None = None, steps: tuple[int, ...] = (), **settings: object) -> RunFacts:
    return RunFacts(name, dict(settings), evaluations or [], {"perf/images_per_s": 10.0}, frozenset(steps))


def test_only_settings_that_differ_are_shown_and_what_a_run_lacks_is_a_dash() -> None:
    table = rows([run("a", lr=0.1, width=8, extra=True), run("b", lr=0.2, width=8)])
    assert [(row.name, row.values) for row in table if row.kind == "setting"] == [("extra", ("True", "-")), ("lr", ("0.1", "0.2"))]
    assert flatten({"a": {"b": 1, "c": {"d": (2,)}}}) == {"a.b": 1, "a.c.d": (2,)}


def test_numbers_of_different_protocols_are_never_in_one_row() -> None:
    one = Evaluation("clean-50k", "a" * 64, 10, {"eval/fid_50k": 5.0, "eval/fid_50k_std": 0.1})
    other = Evaluation("custom", "b" * 64, 10, {"eval/fid_50k": 4.0})
    newer = Evaluation("clean-50k", "a" * 64, 20, {"eval/fid_50k": 4.5, "eval/fid_50k_std": 0.1})
    table = [row for row in rows([run("x", evaluations=[one, newer]), run("y", evaluations=[other])]) if row.name.startswith("eval/")]
    assert [(row.kind, row.values) for row in table] == [("clean-50k aaaaaaaa", ("4.50 ± 0.20", "-")), ("custom bbbbbbbb", ("-", "4"))]


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [((1, 2), (2, 3), [2]), ((1,), (2,), []), (tuple(range(10)), tuple(range(10)), [0, 3, 6, 9])],
)
def test_only_steps_that_all_runs_have_are_shown(first: tuple[int, ...], second: tuple[int, ...], expected: list[int]) -> None:
    assert common_steps([run("a", steps=first), run("b", steps=second)]) == expected


def test_samples_of_different_noise_are_distinguished() -> None:
    assert same_seeds([run("a", **{"sampling.seed": 0}), run("b")])
    assert not same_seeds([run("a", **{"sampling.seed": 0}), run("b", **{"sampling.seed": 1})])


@pytest.mark.parametrize(
    ("path", "step"),
    [
        ("images/samples~ema_grid+step+12+timestamp+1795+ab-cd.png", 12),
        ("images/samples~ema_grid%step%7%timestamp%1795%ab.png", 7),
        ("images/samples~ema_grid+step+12+timestamp+1795+ab+compressed.webp", None),
        ("images/samples~ema_grid_2+step+12+timestamp+1.png", None),
    ],
)
def test_an_images_step_is_read_from_where_mlflow_puts_it(path: str, step: int | None) -> None:
    assert step_of_image(path, "samples/ema_grid") == step


def test_the_grid_has_a_column_per_run_and_a_row_per_step() -> None:
    red, blue = (np.full((32, 32, 3), colour, dtype=np.uint8) for colour in ((255, 0, 0), (0, 0, 255)))
    grid = side_by_side(["a", "b"], {1: [red, blue], 2: [blue, red]})
    height, width = grid.shape[:2]
    assert width == 2 * 640 + 3 * 12
    corners = [tuple(grid[y, x]) for y in (height // 4, 3 * height // 4) for x in (width // 4, 3 * width // 4)]
    assert corners == [(255, 0, 0), (0, 0, 255), (0, 0, 255), (255, 0, 0)]


@pytest.mark.parametrize("stored", [b"", b"{}", b"[]", b"null", b'{"dataset": 3}', b"\xff", b"[" * 100_000, b'{"dataset": {"name": "a"}}'])
def test_a_configuration_that_no_training_wrote_is_left_out(stored: bytes) -> None:
    run = SimpleNamespace(info=SimpleNamespace(run_id="r", run_name="train-r"), data=SimpleNamespace(params={"lr": "1"}))
    stored_files = SimpleNamespace(
        read_artifact=lambda run_id, path: stored, image_paths=lambda run_id: ["images/samples~ema_grid+step+5+a.png"]
    )
    context = SimpleNamespace(tracking=stored_files)
    assert _settings(run, context) == {"lr": "1"}  # type: ignore[arg-type]
    with pytest.raises(DataRefused, match="of run train-r in MLflow is not a readable PNG"):
        _grid(run, 5, context)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("key", "values", "best"),
    [
        ("eval/fid_5k", [3.0, 2.0, None], {1}),
        ("eval/kid_1k", [2.0, 2.0, 3.0], {0, 1}),
        ("eval/recall_1k", [0.1, 0.4], {1}),
        ("eval/memorised_share_1k", [0.1, 0.0], {1}),
        ("eval/fd_randconv_1k_of_noise", [3.0, 2.0], set()),
        ("eval/nearest_median_1k", [3.0, 2.0], set()),
        ("eval/fid_5k", [2.0, 2.0], set()),
        ("eval/fid_5k", [2.0, None], set()),
    ],
)
def test_the_best_value_of_a_metric_with_a_good_end_is_marked(key: str, values: list[float | None], best: set[int]) -> None:
    assert best_columns(key, values) == best


def test_the_best_is_that_of_the_newest_checkpoints() -> None:
    old, new = (Evaluation("clean-50k", "a" * 64, step, {"eval/fid_50k": value}) for step, value in ((10, 1.0), (20, 5.0)))
    other = Evaluation("clean-50k", "a" * 64, 20, {"eval/fid_50k": 4.0})
    (row,) = [row for row in rows([run("x", evaluations=[old, new]), run("y", evaluations=[other])]) if row.name == "eval/fid_50k"]
    assert (row.values, row.best) == (("5", "4"), frozenset({1}))


@pytest.mark.parametrize(("first", "second", "last"), [((1, 2), (1, 3), [2, 3]), ((1, 3), (2, 3), None), ((1,), (), None)])
def test_the_last_samples_of_each_run_are_a_row_of_their_own(
    first: tuple[int, ...], second: tuple[int, ...], last: list[int] | None
) -> None:
    assert last_steps([run("a", steps=first), run("b", steps=second)]) == last


def test_a_student_has_its_teacher_once_in_the_table() -> None:
    teacher = {"run_key": "0" * 16, "step": 9, "ema": "0.1", "weights_sha256": "f" * 64}
    spec = {
        "dataset": {"digest": "d", "name": "n"},
        "distill": {"teacher": "0" * 16, "steps": 4, "teacher_ema": None},
        "teacher": teacher,
    }
    context = SimpleNamespace(tracking=SimpleNamespace(read_artifact=lambda *_: json.dumps(spec)))
    settings = _settings(SimpleNamespace(info=SimpleNamespace(run_id="r")), context)  # type: ignore[arg-type]
    assert settings == {
        "distill.steps": 4,
        **{f"teacher.{name}": value for name, value in teacher.items()},
        "dataset_digest": "d",
        "dataset_name": "n",
    }
