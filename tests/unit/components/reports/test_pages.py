"""Pages and cards: complete in themselves, and nothing in a manifest can become code in them."""

import re
import tomllib
from pathlib import Path
from typing import Any, cast

import pytest
from celebdit_testing.recipes import dataset_manifest, evaluation_protocol, tiny_recipe, tiny_student, trained_with
from jinja2 import UndefinedError

from components.evaluate.page import samples_page
from components.gate.bounds import check_bounds
from components.gate.config import GateConfig
from components.gate.page import decision_page
from components.manifests import ChampionScores, CheckpointManifest, EvaluationReport, GateDecision, MetricInterval
from components.register.card import model_card
from components.reports.html import flat_rows, render
from components.storage import ObjectMissing, ObjectStore, StoreUri
from components.stores.layout import StoreLayout
from model.config import SamplingConfig

EVIL = "<script>alert('x')</script>"


class Images:
    """Stands for a store: every object in it is an image, but those below `missing/`."""

    def get_bytes(self, uri: StoreUri) -> bytes:
        if uri.key.startswith("missing/"):
            raise ObjectMissing(f"no object {uri}")
        return b"png of " + uri.name.encode()


IMAGES = cast("ObjectStore", Images())
LAYOUT = StoreLayout(StoreUri.parse("s3://bucket"))


def report_of(text: str = "x", **changes: Any) -> EvaluationReport:
    """A report with `text` in every place that takes a text."""
    values: dict[str, Any] = {
        "uri": "e",
        "protocol_digest": "a" * 64,
        "protocol": evaluation_protocol(name=text, codec=text, extractor=text, metrics=(text,), sampling={text: text}, ema=text),
        "run_key": text,
        "checkpoint_uri": "c",
        "checkpoint_digest": "c" * 64,
        "checkpoint_step": 9,
        "dataset_digest": "d" * 64,
        "headline": f"eval/{text}",
        "metrics": {f"eval/{text}": 5.0, "eval/a": 0.25},
        "intervals": {f"eval/{text}": MetricInterval(low=4.0, high=6.5, std=0.5)},
        "grid_uri": "grid.png",
        "contact_uri": "nearest.png",
    }
    return EvaluationReport(**{**values, **changes})


def champion_of(report: EvaluationReport, **changes: Any) -> ChampionScores:
    values = {"version": "3", "metrics": report.metrics, "intervals": report.intervals, "grid_uri": "champion.png"}
    return ChampionScores(**{**values, **changes})


def gate_page(report: EvaluationReport, *, reasons: list[str], config: GateConfig | None = None) -> str:
    decision = GateDecision(decision="fail", reasons=reasons, checkpoint_digest=report.checkpoint_digest)
    return decision_page(decision, report, check_bounds(report, config or GateConfig()), IMAGES, LAYOUT)


def is_complete_in_itself(page: str) -> bool:
    """Whether a page embeds all that it shows and its browser may fetch nothing."""
    sources = re.findall(r'(?<![-\w])(?:src|href)="([^"]*)"', page)
    forbids_all = "default-src 'none'; img-src data:; style-src 'unsafe-inline'" in page
    elsewhere = any(text in page for text in ("http:", "https:", "url(", "@import", "<link", "<script"))
    return forbids_all and not elsewhere and all(source.startswith("data:image/") for source in sources)


def test_texts_are_escaped_on_every_page() -> None:
    report = report_of(EVIL)
    report = report.model_copy(update={"champion": champion_of(report, version=EVIL)})
    evaluation = samples_page(report, IMAGES, LAYOUT)
    gate = gate_page(report, reasons=[EVIL], config=GateConfig(at_most={f"eval/{EVIL}": 1.0}))
    for page, places in ((evaluation, 10), (gate, 12)):
        assert "<script" not in page
        assert page.count("&lt;script&gt;") >= places, page


def test_nested_values_are_shown_by_their_path() -> None:
    rows = flat_rows({"sampling": {"sampler": "heun", "num_steps": 32}, "metrics": ["frechet", "kid"], "sha256": None})
    assert rows == [("metrics", "frechet, kid"), ("sampling.num_steps", "32"), ("sampling.sampler", "heun"), ("sha256", "None")]
    page = samples_page(report_of("heun"), IMAGES, LAYOUT)
    assert re.search(r"<dt>sampling\.heun</dt>\s*<dd[^>]*>heun</dd>", page)


def test_the_evaluation_page_shows_metrics_with_intervals_samples_and_protocol() -> None:
    page = samples_page(report_of("fid_9"), IMAGES, LAYOUT)
    assert "Checkpoint cccccccccccc, step 9" in page
    assert re.search(r'<td><code>eval/fid_9</code></td><td class="number">5</td><td[^>]*>4 to 6\.5</td>', page)
    assert re.search(r'<td><code>eval/a</code></td><td class="number">0\.25</td><td[^>]*></td>', page)
    assert page.count("data:image/png;base64,") == 2
    assert "Nearest training images" in page
    assert "Nearest training images" not in samples_page(report_of(contact_uri=None), IMAGES, LAYOUT)


def test_the_gate_page_shows_each_bound_beside_its_metric_and_both_grids() -> None:
    report = report_of("fid_9")
    config = GateConfig(at_most={"eval/fid_9": 6.0}, at_least={"eval/a": 0.2})
    champion = champion_of(report, metrics={"eval/fid_9": 7.25}, intervals={})
    page = gate_page(report.model_copy(update={"champion": champion}), reasons=["r"], config=config)
    headline, other = (re.search(rf"<tr[^>]*><td><code>{key}</code>.*?</tr>", page, re.DOTALL) for key in ("eval/fid_9", "eval/a"))
    assert headline is not None
    assert other is not None
    assert '<td class="number">7.25</td>' in headline[0]
    assert '<span class="bad">✗ at most 6</span>' in headline[0], "the worse end of its interval is 6.5"
    assert '<span class="good">✓ at least 0.2</span>' in other[0]
    assert page.count("data:image/png;base64,") == 3
    assert "Champion, version 3: the same seeds." in page
    assert "champion" not in gate_page(report, reasons=["r"]).lower()


def test_the_gate_page_leaves_out_images_that_are_not_stored_any_more() -> None:
    report = report_of(grid_uri="missing/grid.png", contact_uri="missing/nearest.png")
    assert "<img" not in gate_page(report, reasons=["r"])


def test_numbers_for_people_begin_with_the_headline_and_have_an_interval_instead_of_an_error() -> None:
    metrics = {"eval/fid_8": 5.0, "eval/fid_8_std": 0.5, "eval/kid_mean_8": 0.1, "eval/kid_std_8": 0.2, "eval/a": 1.0}
    interval = MetricInterval(low=4.0, high=6.0, std=0.5)
    report = EvaluationReport.model_construct(headline="eval/fid_8", metrics=metrics, intervals={"eval/fid_8": interval})
    assert [key for key, _, _ in report.metric_rows()] == ["eval/fid_8", "eval/a", "eval/kid_mean_8", "eval/kid_std_8"]
    assert report.metric_rows()[0] == ("eval/fid_8", 5.0, interval)


def test_a_page_fetches_nothing() -> None:
    report = report_of()
    for page in (samples_page(report, IMAGES, LAYOUT), gate_page(report, reasons=["r"])):
        assert page.startswith("<!doctype html>")
        assert is_complete_in_itself(page)


def test_a_page_without_a_value_that_its_template_uses_is_an_error() -> None:
    with pytest.raises(UndefinedError, match="title"):
        render("base.html")


def test_a_card_says_what_a_reader_must_know() -> None:
    recipe = trained_with(tiny_recipe(network={"depth": 4, "width": 128}))
    checkpoint = CheckpointManifest(run_key="k", uri="c", digest="c" * 64, step=9, dataset_digest="d" * 64, recipe=recipe)
    report = EvaluationReport(
        uri="e",
        protocol_digest="a" * 64,
        protocol=evaluation_protocol(name="clean-50k", num_images=50_000),
        run_key="k",
        checkpoint_uri="c",
        checkpoint_digest="c" * 64,
        checkpoint_step=9,
        dataset_digest="d" * 64,
        headline="eval/fid_50k",
        metrics={"eval/fid_50k": 5.0},
        grid_uri="g",
    )
    gate = GateDecision(decision="pass", reasons=["good enough"], checkpoint_digest="c" * 64)
    card = model_card("faces", checkpoint, dataset_manifest(licence="research only"), report, gate, SamplingConfig())
    for section in (
        "## Data and licence",
        "## Recipe",
        "## Metrics",
        "### Protocol `clean-50k`",
        "## Samples",
        "## Limits",
        "## How to use it",
    ):
        assert section in card
    assert "**research only**" in card
    assert "follow the protocol `clean-50k`" in card
    assert "student" not in card
    student = checkpoint.model_copy(update={"recipe": trained_with(tiny_student(steps=3))})
    card = model_card("faces", student, dataset_manifest(), report, gate, SamplingConfig(sampler="ddpm", num_steps=3))
    assert f"a student of 3 sampling steps, distilled by moment matching from run `{'a' * 16}`, step 6, EMA 0.1" in card
    assert f"sha256 `{'b' * 64}`" in card
    assert '"num_images": 50000' in card


def test_every_file_that_is_not_python_is_in_the_installed_package() -> None:
    root = Path(__file__).parents[4]
    patterns = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    installed = {path for package, globs in patterns.items() for glob in globs for path in root.joinpath(*package.split(".")).glob(glob)}
    tops = (root / name for name in ("model", "components", "pipeline"))
    others = {path for top in tops for path in top.rglob("*") if path.is_file() and path.suffix not in (".py", ".pyc")}
    assert others == installed
    assert {"base.html", "style.css", "gate.html", "evaluation.html", "dataset.html"} <= {path.name for path in installed}
