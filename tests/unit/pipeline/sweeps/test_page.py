"""What people see of a sweep: the page in a real browser, and the table in the terminal."""

import io
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from celebdit_testing.browser import browser_page, chromium_or_skip
from celebdit_testing.sweeps import SWEEP, FreeRunner, sweep_of
from PIL import Image
from rich.console import Console

from components.errors import DataRefused
from components.reports.image_grid import png
from components.runtime.events import Event
from components.storage import ObjectMissing
from pipeline.sweeps.charts import Scale, rung_chart
from pipeline.sweeps.coordinator import Coordinator
from pipeline.sweeps.page import sweep_page
from pipeline.sweeps.ranking import Score
from pipeline.sweeps.records import Asked, Record, Started, SweepState
from pipeline.sweeps.standing import Standing, standings
from pipeline.sweeps.sweep_file import Sweep
from pipeline.sweeps.table import SweepView, lines_of, table, table_lines

WITH_A_RANGE = """
name = "NAME"
base = "smoke"
sampler = "random"
trials = 6
rungs = [4, 100]
keep_one_in = 2
[vary]
optimizer.lr_peak = {low = 1e-4, high = 1e-2, log = true}
diffusion = [{prediction = "x"}, {path = "vp_cosine", prediction = "eps"}]
"""


class Records:
    """Stands for the journal: keeps the records."""

    def __init__(self) -> None:
        self.records: list[Record] = []

    def append(self, record: Record) -> None:
        self.records.append(record)


def finished(sweep: Sweep, runner: FreeRunner | None = None) -> tuple[SweepState, list[Record]]:
    journal, state = Records(), SweepState()
    Coordinator(sweep, journal, runner or FreeRunner(), lambda config: None).run(state)  # type: ignore[arg-type]
    return state, journal.records


def grid(uri: str) -> bytes:
    return png(np.random.default_rng(0).integers(0, 255, (48, 48, 3), dtype=np.uint8))


def page_of(sweep: Sweep, state: SweepState, read_image: Callable[[str], bytes] = grid) -> str:
    return sweep_page(sweep, state, standings(sweep, state), read_image)


def test_a_browser_shows_the_page_with_all_trials_charts_and_samples(tmp_path: Path) -> None:
    with browser_page(chromium_or_skip()) as tab:
        for text in (SWEEP, WITH_A_RANGE):
            sweep = sweep_of(tmp_path, text=text)
            (tmp_path / "sweep.html").write_text(page_of(sweep, finished(sweep)[0]))
            look_at_page(tab, tmp_path / "sweep.html", sweep)


def look_at_page(tab: Any, page: Path, sweep: Sweep) -> None:
    """Check in a browser that all of a sweep's page is there, within its charts, and that nothing was refused."""
    problems: list[str] = []
    tab.on("console", lambda message: problems.append(message.text))
    tab.goto(page.as_uri())
    assert tab.locator("#trials tr").count() == 1 + sweep.num_trials
    head = tab.locator("#trials th").all_inner_texts()
    assert len(head) == 1 + len(sweep.space.dimensions) + len(sweep.config.rungs) + 2, "varied settings only"
    for chart in ("rung-curves", "parallel-coordinates"):
        boxes = tab.locator(f"#{chart}, #{chart} path").evaluate_all(
            "all => all.map(item => item.getBoundingClientRect()).map(box => [box.left, box.top, box.right, box.bottom])"
        )
        (left, top, right, bottom), *lines = boxes
        assert len(lines) == sweep.num_trials
        assert all(left <= line[0] and top <= line[1] and line[2] <= right and line[3] <= bottom for line in lines)
    no_line_crosses_a_label(tab)
    bars = tab.locator("#rung-curves circle").evaluate_all("all => all.map(item => [item.getAttribute('cx'), item.getAttribute('cy')])")
    assert len({x for x, _ in bars}) == len(bars) > sweep.num_trials, "no trial hides another one on a rung"
    tab.set_viewport_size({"width": 400, "height": 900})
    for chart in ("rung-curves", "parallel-coordinates"):
        assert tab.locator(f"#{chart}").evaluate("item => item.getBoundingClientRect().right") <= 400, "it fits a telephone"
    assert tab.locator("#trials").bounding_box()["height"] < 90 * sweep.num_trials, "a reason takes some lines, and not a word per line"
    no_line_crosses_a_label(tab)
    tab.set_viewport_size({"width": 1200, "height": 900})
    images = tab.locator("img")
    assert images.count() == 4
    assert images.evaluate_all("all => all.every(image => image.naturalWidth === 48)")
    assert "no difference is shown" in tab.inner_text("body")
    assert problems == []
    assert np.asarray(Image.open(io.BytesIO(tab.screenshot())).convert("L")).std() > 5, "the page is not empty"


def no_line_crosses_a_label(tab: Any) -> None:
    """Check it for the parallel coordinates, along every line."""
    crossed = tab.evaluate("""() => {
        const chart = document.getElementById('parallel-coordinates'), here = chart.getScreenCTM();
        const labels = [...chart.querySelectorAll('text')].map(item => [item.textContent, item.getBoundingClientRect()]);
        return [...chart.querySelectorAll('path')].flatMap(path => {
            const part = document.createElementNS(path.namespaceURI, 'path');
            return path.getAttribute('d').split(/(?=M)/).flatMap(d => {
                part.setAttribute('d', d);
                return [...Array(200).keys()].map(n => part.getPointAtLength(part.getTotalLength() * n / 199).matrixTransform(here))
                    .flatMap(at => labels.filter(([, box]) => box.left < at.x && at.x < box.right && box.top < at.y && at.y < box.bottom))
                    .map(([text]) => text);
            });
        });
    }""")
    assert not set(crossed)


@pytest.mark.parametrize("metric", ["eval/fd_randconv_8", "eval/kd_randconv_mean_8"])
def test_a_bar_ends_at_zero_where_the_metric_cannot_be_negative(tmp_path: Path, metric: str) -> None:
    measured = SWEEP.replace("num_images = 8", 'num_images = 8\nmetrics = ["frechet", "kid"]')
    sweep = sweep_of(tmp_path, text=measured.replace("keep_one_in", f'metric = "{metric}"\nkeep_one_in'))
    is_distance = metric == "eval/fd_randconv_8"
    assert sweep.least == (0.0 if is_distance else None)
    wide = Standing(0, next(sweep.space.combinations()), {4: Score(0, 1.0, -2.0, 4.0, 1)}, "waiting", "", 1.0)
    chart = rung_chart(sweep, [wide])
    (bar,) = chart.curves[0].bars
    labels = {tick.text: tick.at for tick in chart.y_ticks}
    assert bar.low == labels["0" if is_distance else "-2"] == max(labels.values())
    assert bar.text == "1 ± 3", "the interval is said as it is"


@pytest.mark.parametrize(
    ("low", "high", "texts"),
    [
        (3.71, 10.0, ["4", "6", "8", "10"]),
        (7.91, 8.2, ["8", "8.1", "8.2"]),
        (0.0, 1e-3, ["0", "0.0002", "0.0004", "0.0006", "0.0008", "0.001"]),
    ],
)
def test_scores_have_round_ticks_within_the_axis(low: float, high: float, texts: list[str]) -> None:
    ticks = Scale(low, high, 100.0, 0.0).round_ticks()
    assert [tick.text for tick in ticks] == texts
    assert all(0 <= tick.at <= 100 for tick in ticks)
    assert [tick.text for tick in Scale(2.5, 2.5, 100.0, 0.0).round_ticks()] == ["2.5"]


def test_the_page_fetches_nothing_and_escapes_everything(tmp_path: Path) -> None:
    sweep = sweep_of(tmp_path)
    state, _ = finished(sweep)
    state.failed.clear()
    state.decided[4].reasons[3] = "<script>alert('x')</script>"
    page = page_of(sweep, state)
    assert "<script" not in page
    assert all(source.startswith("data:image/") for source in re.findall(r'(?:src|href)="([^"]*)"', page))
    assert not any(text in page for text in ("http:", "https:", "url(", "@import", "<link"))


def test_the_page_of_a_sweep_that_has_only_begun_or_lost_its_images_is_a_page(tmp_path: Path) -> None:
    sweep = sweep_of(tmp_path)
    state, records = finished(sweep)

    def lost(uri: str) -> bytes:
        raise ObjectMissing(uri)

    for count in range(len(records)):
        page = page_of(sweep, SweepState.of(records[:count]))
        assert page.rstrip().endswith("</html>")
    assert "<img" not in page_of(sweep, state, lost)


def test_the_table_has_a_row_per_trial_the_best_first(tmp_path: Path) -> None:
    sweep = sweep_of(tmp_path)
    state, _ = finished(sweep)
    rows = standings(sweep, state)
    assert [row.status for row in rows] == ["winner", "stopped", "stopped", "stopped"]
    assert rows[0].values == {"network.dropout": 0.0, "optimizer.lr_peak": 2e-3}
    assert (rows[0].trial, rows[0].seconds) == (1, 4.0)
    output = io.StringIO()
    Console(file=output, width=120).print(table(sweep, state))
    for text in ("trial", "dropout", "lr_peak", "step 4", "step 8", "± 0.2", "winner", "stopped"):
        assert text in output.getvalue()
        assert text in "\n".join(table_lines(sweep, state))


def test_what_an_ended_command_left_unfinished_is_interrupted_and_does_not_run(tmp_path: Path) -> None:
    sweep = sweep_of(tmp_path)
    state, records = finished(sweep)
    begun = SweepState.of(records[: 1 + next(index for index, record in enumerate(records) if isinstance(record, Started))])
    assert [row.status for row in standings(sweep, begun)].count("running") == 1
    assert [row.status for row in standings(sweep, begun, is_over=True)].count("interrupted") == 1
    assert standings(sweep, state, is_over=True) == standings(sweep, state)
    lines = "\n".join(table_lines(sweep, begun, is_over=True))
    assert ("interrupted" in lines, "running" in lines) == (True, False)
    with SweepView(sweep, begun, terminal=False) as view:
        shown = io.StringIO()
        view._console.file = shown
    assert ("interrupted" in shown.getvalue(), "running" in shown.getvalue()) == (True, False)


def test_a_failure_and_its_reason_are_shown(tmp_path: Path) -> None:
    sweep = sweep_of(tmp_path)
    state, records = finished(sweep, FreeRunner(lambda piece: DataRefused("loss is not finite") if piece and piece.trial == 2 else None))
    assert [row.reason for row in standings(sweep, state) if row.trial == 2] == ["stopped: loss is not finite"]
    lines = [line for record in records for line in lines_of(sweep, record)]
    assert "trial 2: seed 0, step 4: failed: loss is not finite" in lines
    assert "step 4: trial 2: stopped: loss is not finite" in lines
    assert any(line.startswith("step 4: trial 1: kept: place 1 of 3") for line in lines)


def test_without_a_terminal_each_record_is_a_line_and_the_table_comes_last(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sweep = sweep_of(tmp_path)
    state, records = finished(sweep)
    with SweepView(sweep, SweepState(), terminal=False) as view:
        for count, record in enumerate(records, start=1):
            view.show(SweepState.of(records[:count]), record)
        first = Asked(at_s=0.0, trial=9, values={"optimizer.lr_peak": 1e-3, "network.dropout": 0.0}, sampler="\x1b[31m")
        view.show(state, first)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "trial 0: dropout 0, lr_peak 0.001"
    assert lines[-1].split()[-1] == "stopped"
    assert "\x1b" not in "".join(lines)


def test_on_a_terminal_each_run_of_a_sweep_has_bars_of_its_own_to_their_ends(tmp_path: Path) -> None:
    sweep = sweep_of(tmp_path)
    state, records = finished(sweep)
    started = [record for record in records if isinstance(record, Started)]
    with SweepView(sweep, state, terminal=True) as view:
        for record in started:
            view.show(state, record)
            for step in ("train", "evaluate"):
                view(Event(step, "started", 0.0, {}))
                view(Event(step, "progress", 1.0, {"done": 3, "total": 4, "text": "steps"}))
                view(Event(step, "finished" if step == "train" else "failed", 2.0, {}))
            assert [(bar.description, bar.completed, bar.total) for bar in view._progress.tasks] == [("train", 4, 4), ("evaluate", 0, 4)]
    assert len(started) > 2
