"""Pages and cards: complete in themselves, and nothing in a manifest can become code in them."""

from celebdit_testing.recipes import dataset_manifest, evaluation_protocol

from components.manifests import CheckpointManifest, EvaluationReport, GateDecision, MetricInterval
from components.register.card import model_card
from components.reports.html import bullets, details, heading, page, picture, table
from model.config import SamplingConfig

EVIL = "<script>alert('x')</script>"


def test_texts_are_escaped_everywhere() -> None:
    whole = page(EVIL, [heading(EVIL), bullets([EVIL]), table((EVIL,), [(EVIL, 1.5)]), picture(b"png", EVIL)], kind=EVIL)
    assert "<script" not in whole
    assert whole.count("&lt;script&gt;") >= 6
    assert '<td class="number">1.5</td>' in whole


def test_nested_facts_are_shown_by_their_path() -> None:
    shown = details({"sampling": {"sampler": "heun", "num_steps": 32}, "metrics": ["frechet", "kid"], EVIL: None})
    for said in ("<td>sampling.sampler</td><td>heun</td>", "<td>sampling.num_steps</td>", "<td>frechet, kid</td>", "<td>None</td>"):
        assert said in shown
    assert "<script" not in shown


def test_numbers_for_people_begin_with_the_headline_and_have_an_interval_instead_of_an_error() -> None:
    metrics = {"eval/fid_8": 5.0, "eval/fid_8_std": 0.5, "eval/kid_mean_8": 0.1, "eval/kid_std_8": 0.2, "eval/a": 1.0}
    interval = MetricInterval(low=4.0, high=6.0, std=0.5)
    report = EvaluationReport.model_construct(headline="eval/fid_8", metrics=metrics, intervals={"eval/fid_8": interval})
    assert [key for key, _, _ in report.numbers()] == ["eval/fid_8", "eval/a", "eval/kid_mean_8", "eval/kid_std_8"]
    assert report.numbers()[0] == ("eval/fid_8", 5.0, interval)


def test_a_page_fetches_nothing() -> None:
    whole = page("t", [picture(b"png", "c")])
    assert 'src="data:image/png;base64,' in whole
    assert "http" not in whole
    assert "src=" in whole


def test_a_card_says_what_a_reader_must_know() -> None:
    recipe = {"network": {"depth": 4, "width": 128}, "training": {"precision": "float32"}}
    checkpoint = CheckpointManifest(run_key="k", uri="s3://b/c", digest="c" * 64, step=9, dataset_digest="d" * 64, recipe=recipe)
    report = EvaluationReport(
        uri="s3://b/e",
        protocol_digest="a" * 64,
        protocol=evaluation_protocol(name="clean-50k", num_images=50_000),
        run_key="k",
        checkpoint_uri="s3://b/c",
        checkpoint_digest="c" * 64,
        checkpoint_step=9,
        dataset_digest="d" * 64,
        headline="eval/fid_50k",
        metrics={"eval/fid_50k": 5.0},
        grid_uri="s3://b/g",
    )
    gate = GateDecision(decision="pass", reasons=["good enough"], checkpoint_digest="c" * 64)
    card = model_card("faces", checkpoint, dataset_manifest(licence="research only"), report, gate, SamplingConfig())
    for section in (
        "## Data and licence",
        "## Recipe",
        "## Numbers",
        "### Protocol `clean-50k`",
        "## Samples",
        "## Limits",
        "## How to use it",
    ):
        assert section in card
    assert "**research only**" in card
    assert "follow the protocol `clean-50k`" in card
    assert '"num_images": 50000' in card
