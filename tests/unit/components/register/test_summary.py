"""What KFP shows of a run: its summary, and the metrics of its training."""

from pathlib import Path

from celebdit_testing.recipes import dataset_manifest
from celebdit_testing.registered import passed, report_of
from celebdit_testing.steps import notes, step_context

from components.manifests import CheckpointManifest, RegisteredVersion
from components.register.summary import summary_markdown
from components.train.kfp_metrics import kfp_metrics

CHECKPOINT = CheckpointManifest.model_construct(step=46000, run_key="0123456789abcdef", digest="c" * 64, uri="runs/1/checkpoints/1")


def test_the_summary_has_score_version_and_links() -> None:
    version = RegisteredVersion(
        name="celebdit", version="7", aliases=["challenger"], checkpoint_digest="c" * 64, model_uri="models:/celebdit/7"
    )
    dataset = dataset_manifest(name="faces")
    links = {"the run in MLflow": "http://mlflow:5000/#/experiments/1/runs/r"}
    text = summary_markdown(CHECKPOINT, dataset, report_of(CHECKPOINT), passed(CHECKPOINT), version, links=links)
    assert text.startswith("# celebdit version 7\n\n**eval/fd_randconv_16 = 12.5**, gate: pass (good)")
    assert "- [the run in MLflow](http://mlflow:5000/#/experiments/1/runs/r)" in text
    assert "| training | 46000 steps, run 0123456789abcdef |" in text
    assert len(text) < 4000


def test_a_name_cannot_end_its_cell_or_become_a_link() -> None:
    version = RegisteredVersion(name="celebdit", version="7", aliases=["a|b [x](http://evil)"], checkpoint_digest="c" * 64, model_uri="m")
    text = summary_markdown(CHECKPOINT, dataset_manifest(), report_of(CHECKPOINT), passed(CHECKPOINT), version, links={})
    assert "| aliases | a\\|b \\[x\\](http://evil) |" in text


def test_an_outage_of_mlflow_costs_kfp_the_loss_and_nothing_else(tmp_path: Path) -> None:
    context = step_context("train", tmp_path, "s3://bucket/x", endpoint="http://127.0.0.1:9")
    assert kfp_metrics(CHECKPOINT, context) == {"steps": 46000.0}
    assert any("KFP shows no loss" in note for note in notes(context))
