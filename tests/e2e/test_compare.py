"""Two finished runs side by side: the command's table and image, and the charts of the MLflow UI with a real browser."""

import os
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pytest
from celebdit_testing.browser import browser_page, chromium_or_skip
from celebdit_testing.command import Finished, celebdit, celebdit_here
from mlflow import MlflowClient
from PIL import Image

from pipeline.services import Services

pytestmark = [pytest.mark.e2e, pytest.mark.fault, pytest.mark.slow]
PICTURES = os.environ.get("CELEBDIT_DOCS_PICTURES")
"""A folder to keep the screenshots in, for the documentation."""


@pytest.fixture(scope="module")
def compared(
    embedded: Services, first_run: Finished, second_run: Finished, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Finished, Path]:
    out = tmp_path_factory.mktemp("compare") / "comparison.png"
    names = (first_run.json["run_key"][:8], second_run.json["run_id"])
    return celebdit("compare", *names, "--out", str(out), "--json", home=embedded.home), out


def test_compare_prints_what_differs_the_numbers_with_their_protocol_and_the_cost(compared: tuple[Finished, Path]) -> None:
    done, _ = compared
    assert done.code == 0, done.err
    rows = {row["name"]: row for row in done.json["rows"]}
    assert rows["optimizer.lr_peak"] == {"kind": "setting", "name": "optimizer.lr_peak", "values": ["0.001", "0.004"]}
    assert rows["training.total_steps"]["values"] == ["12", "24"]
    assert "network.width" not in rows, "what is equal is not a difference"
    score = rows["eval/fd_randconv_16"]
    assert score["kind"].startswith("custom ")
    assert all("±" in value for value in score["values"])
    assert len(score["best"]) == 1
    assert " *" in done.err
    assert rows["perf/images_per_s"]["kind"] == "cost"
    for line in ("optimizer.lr_peak", "eval/fd_randconv_16", "±", "samples at step 6, 12"):
        assert line in done.err


def test_compare_sets_the_samples_of_the_same_steps_side_by_side(compared: tuple[Finished, Path], first_run: Finished) -> None:
    done, out = compared
    assert done.json["steps"] == [6, 12]
    assert done.json["last_steps"] == [12, 24]
    assert "the last of each run (step 12, 24)" in done.err
    image = np.asarray(Image.open(out))
    left, right = image[60:600, 20:600], image[60:600, 672:1252]
    for grid in (left, right):
        assert grid.std() > 1, "there is something in it"
    assert not np.array_equal(left, right)


def test_compare_refuses_what_cannot_be_compared(
    embedded: Services, first_run: Finished, second_run: Finished, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    key = first_run.json["run_key"]
    for arguments, message in (
        ((key,), "compare needs 2 to 10 different runs, got 1"),
        ((key, key), "compare needs 2 to 10 different runs, got 1"),
        ((key, first_run.json["run_id"]), "are the same training"),
        ((key, "0" * 16), "MLflow has no training run '0000000000000000'"),
        ((key, "x'; --"), "MLflow has no training run"),
        ((key, second_run.json["run_key"], "--out", str(tmp_path / "no" / "x.png")), "cannot be written"),
    ):
        wrong = celebdit_here("compare", *arguments, home=embedded.home, capture=capsys)
        assert wrong.code == 2, wrong.err
        assert message in wrong.err
        assert "Traceback" not in wrong.err


def keep(page: Any, name: str, tmp_path: Path) -> Path:
    target = Path(PICTURES or tmp_path) / name
    page.screenshot(path=str(target))
    assert len(np.unique(np.asarray(Image.open(target).convert("L")))) > 50, "the page is not empty"
    return target


def wait_for_samples(page: Any) -> None:
    """Wait until the description shows the grid of samples; the page leaves out the text of an image."""
    page.wait_for_function("[...document.querySelectorAll('img[src*=\"path=grid.png\"]')].some(image => image.naturalWidth > 500)")


def test_the_ui_shows_charts_and_images_of_both_runs_side_by_side(
    compared: tuple[Finished, Path], first_run: Finished, second_run: Finished, embedded: Services, tmp_path: Path
) -> None:
    with browser_page(chromium_or_skip(), height=1200) as page:
        page.goto(embedded.wait().link(compared[0].json["mlflow"]))
        runs = [f"train-{run.json['run_key']}" for run in (first_run, second_run)]
        for name in runs:
            page.get_by_text(name).first.wait_for()
        page.get_by_text("2 matching runs").wait_for()
        charts = page.get_by_test_id("experiment-view-compare-runs-card")
        charts.filter(has_text="eval/fd_randconv_16").first.wait_for()
        page.locator(".js-plotly-plot .main-svg").first.wait_for()
        keep(page, "mlflow-charts.png", tmp_path)
        page.get_by_placeholder("Search metric charts").fill("samples/ema_grid")  # cards out of sight are not drawn
        card = charts.filter(has_text="samples/ema_grid").first
        card.locator("[data-component-id='fullscreen_button_chartcard']").click()
        dialog = page.get_by_role("dialog")
        for name in runs:
            dialog.get_by_text(name).first.wait_for()
        slider = dialog.get_by_role("slider")
        slider.focus()
        while dialog.locator("input").last.input_value() != "12":
            slider.press("ArrowRight")
            page.wait_for_timeout(300)
        page.wait_for_function("document.querySelectorAll('[role=dialog] img').length >= 2")
        page.wait_for_function("[...document.querySelectorAll('[role=dialog] img')].every(i => i.complete && i.naturalWidth > 100)")
        image_sources = page.evaluate("[...document.querySelectorAll('[role=dialog] img')].map(i => i.src)")
        assert len(set(image_sources)) == 2, "each run's own image"
        page.set_viewport_size({"width": 720, "height": 1700})
        page.wait_for_timeout(1000)
        keep(page, "mlflow-images.png", tmp_path)


def test_two_pipeline_runs_chosen_in_the_list_are_compared(
    first_run: Finished, second_run: Finished, embedded: Services, tmp_path: Path
) -> None:
    endpoints = embedded.wait()
    ids = [run.json["mlflow"]["run_id"] for run in (first_run, second_run)]
    chosen = quote(f"attributes.run_id IN ({', '.join(map(repr, ids))})")
    with browser_page(chromium_or_skip()) as page:
        page.goto(endpoints.link(f"{endpoints.mlflow_url}/#/experiments/1/runs?workflowType=machine_learning&searchFilter={chosen}"))
        page.get_by_text("2 matching runs").wait_for()
        for name in ("smoke x-pred lr1e-3 s0", "smoke x-pred lr4e-3 s0"):
            page.get_by_text(name).first.wait_for()
        keep(page, "mlflow-runs.png", tmp_path)
        boxes = page.locator(".ag-row .ag-selection-checkbox input")
        for number in range(2):
            boxes.nth(number).check(force=True)
        page.get_by_role("button", name="Compare").click()
        page.get_by_text("Show diff only").first.click()
        for text in ("optimizer.lr_peak", "0.004", "training.total_steps", "eval/fd_randconv_16"):
            page.get_by_text(text, exact=True).first.wait_for()
        assert page.get_by_text("optimizer.warmup_steps", exact=True).count() == 0, "what is equal is not shown"
        page.get_by_text("grid.png").first.dispatch_event("click")  # a part of the page may lie over it
        page.wait_for_function("[...document.querySelectorAll('img')].filter(image => image.naturalWidth > 500).length >= 2")
        page.get_by_text("Metrics", exact=True).last.scroll_into_view_if_needed()
        keep(page, "mlflow-compare.png", tmp_path)
        page.goto(f"{endpoints.mlflow_url}/#/experiments/1/runs/{ids[0]}?workflowType=machine_learning")
        page.get_by_text("Show more").first.click()
        wait_for_samples(page)
        keep(page, "mlflow-run.png", tmp_path)


def test_the_ui_shows_versions_with_their_aliases(first_run: Finished, embedded: Services, tmp_path: Path) -> None:
    endpoints = embedded.wait()
    url = endpoints.mlflow_url
    model = first_run.json["model"]
    MlflowClient(url).set_registered_model_alias(model["name"], "ui-test", model["version"])
    with browser_page(chromium_or_skip()) as page:
        page.goto(endpoints.link(f"{url}/#/models/{model['name']}?workflowType=machine_learning"))
        assert "token" not in page.url
        page.get_by_text(f"Version {model['version']}").first.wait_for()
        page.get_by_text("@ ui-test").or_(page.get_by_text("ui-test")).first.wait_for()
        keep(page, "mlflow-versions.png", tmp_path)
        page.goto(f"{url}/#/models/{model['name']}/versions/{model['version']}?workflowType=machine_learning")
        page.get_by_text("Limits", exact=True).first.wait_for()
        page.get_by_text(first_run.json["checkpoint"]["digest"]).first.wait_for()
        page.get_by_text("How to use it", exact=True).first.wait_for()
        wait_for_samples(page)
        keep(page, "mlflow-card.png", tmp_path)
