"""`celebdit ingest` as a user runs it, and what MLflow shows of it afterwards."""

import json
import zipfile
from pathlib import Path
from typing import Any

import pytest
from celebdit_testing.command import Finished, celebdit
from kfp import dsl
from mlflow import MlflowClient

from components.ingest.component import ingest as ingest_step
from components.ingest.config import DataConfig
from components.ingest.ingest import run
from components.ingest.record import record
from components.ingest.sources.synthetic import write_archive
from components.manifests import DatasetManifest
from pipeline.cli import main
from pipeline.services import Endpoints, Services

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("archive") / "faces.zip"
    write_archive(path, count=20, seed=0, image_px=64)
    with zipfile.ZipFile(path, "a") as opened:
        opened.writestr("celeba_hq_256/broken.jpg", b"not an image")
        opened.writestr("readme.txt", b"hello")
    return path


def ingest(archive: Path, home: Path, *more: str) -> Finished:
    return celebdit(
        "ingest", "--source", str(archive), "--image-px", "32", "--license", "CC0-1.0", "data.max_rejected=0.1", *more, home=home
    )


@pytest.fixture(scope="module")
def first(embedded: Services, archive: Path) -> Finished:
    return ingest(archive, embedded.home, "--json")


def test_it_prints_digest_and_counts_as_one_json_object(first: Finished) -> None:
    assert first.code == 0, first.err
    facts = json.loads(first.out)
    assert len(facts["digest"]) == 64
    assert (facts["num_images"], facts["rejected"], facts["ignored"]) == (20, {"not_an_image": 1}, 1)
    assert facts["accepted"] == {"resized": 20}
    page = Path(facts["report"]).read_text()
    assert facts["digest"] in page
    for line in ("20 images, digest", "not_an_image 1; 1 other files ignored", facts["report"], facts["mlflow_run_url"]):
        assert line in first.err


def test_a_second_time_is_a_no_op_that_says_so(first: Finished, archive: Path, embedded: Services) -> None:
    again = ingest(archive, embedded.home, "--json")
    assert "is complete: 20 images, nothing to do" in again.err
    assert again.json["digest"] == first.json["digest"]


def test_mlflow_shows_the_data_set_its_licence_and_its_report(first: Finished, embedded: Services) -> None:
    facts = first.json
    client = MlflowClient(embedded.wait().mlflow_url)
    run_id = facts["mlflow_run_url"].split("/runs/")[1].split("?")[0]
    logged = client.get_run(run_id)
    (entry,) = logged.inputs.dataset_inputs
    assert facts["digest"].startswith(entry.dataset.digest)
    key = json.loads(entry.dataset.source)["uri"]
    assert key.startswith("datasets/")
    assert facts["uri"].endswith(f"/{key}")
    tags = logged.data.tags
    assert (tags["dataset.digest"], tags["dataset.uri"], tags["dataset.licence"]) == (facts["digest"], key, "CC0-1.0")
    assert logged.data.metrics["data/images"] == 20
    assert logged.data.metrics["data/rejected/not_an_image"] == 1
    assert [item.path for item in client.list_artifacts(run_id)] == ["report.html"]
    assert logged.info.status == "FINISHED"
    assert client.get_run(tags["mlflow.parentRunId"]).info.status == "FINISHED"


def test_telling_mlflow_again_adds_nothing(endpoints: Endpoints, embedded: Services, tmp_path: Path) -> None:
    from celebdit_testing.steps import step_context

    store = endpoints.environment["CELEBDIT_STORE"]
    context = step_context("ingest", tmp_path, store, endpoint=endpoints.s3_url, mlflow_uri=endpoints.mlflow_url, run_id="ingested-twice")
    manifest = run(DataConfig(name="twice", source="synthetic://?count=5", image_px=32), context)
    assert record(manifest, context) == record(manifest, context)
    logged = context.tracking.client.get_run(context.tracking.step_run("ingest").info.run_id)
    assert len(logged.inputs.dataset_inputs) == 1
    assert len(context.tracking.client.get_metric_history(logged.info.run_id, "data/images")) == 1


def test_the_kfp_artifact_carries_location_and_digest(endpoints: Endpoints, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"CELEBDIT_RUN_ID": "component", "CELEBDIT_WORK_DIR": str(tmp_path)}.items():
        monkeypatch.setenv(name, value)
    section = DataConfig(name="component", source="synthetic://?count=4", image_px=32).model_dump_json()
    artifact = dsl.Dataset(uri=str(tmp_path / "dataset"))
    page = dsl.HTML(uri=str(tmp_path / "page.html"))
    digest = ingest_step.python_func(data=section, dataset=artifact, page=page)
    assert "<html" in Path(page.path).read_text()
    manifest = DatasetManifest.load(Path(artifact.path))
    assert digest == manifest.digest == artifact.metadata["digest"]
    assert artifact.metadata["uri"] == manifest.uri
    assert manifest.uri == f"datasets/component/{digest}"


BAD_INPUT: list[tuple[list[str], int, str]] = [
    (["--source", "/does/not/exist.zip"], 2, "data.source /does/not/exist.zip does not exist"),
    (["--source", "ftp://host/x.zip"], 2, "data.source has the unknown scheme 'ftp'"),
    (["--source", "kaggle://nonsense"], 2, "data.source kaggle://nonsense is not a Kaggle dataset"),
    (["--source", "s3://UPPER/x"], 2, "is not an S3 location"),
    (["--source", "synthetic://?count=-1"], 2, "takes a count from 1"),
    (["--source", "synthetic://", "--image-px", "7"], 2, "data.image_px: Input should be greater than or equal to 8"),
    (["--source", "synthetic://", "--name", "../escape"], 2, "data.name: must look like celebahq256"),
    (["--source", "synthetic://", "data.max_rejectd=1"], 2, "unknown key data.max_rejectd"),
    (["--source", "synthetic://", "data.max_rejected=nan"], 2, "finite"),
    (["--source", "synthetic://", "data.max_rejected=1.5"], 2, "data.max_rejected: Input should be less than or equal to 1"),
    (["--source", "synthetic://", "network.width=3"], 2, "is not a setting of the data section"),
    (["--source", "synthetic://\n"], 2, "must not contain control characters"),
    (["--source", ""], 2, "'--source': it is empty"),
    ([], 2, "Missing option '--source'"),
    (["--source", "synthetic://", "--workers", "0"], 2, "--workers"),
    (["--source", "kaggle://badasstechie/celebahq-resized-256x256"], 2, "must be accepted before its images are ingested"),
]


@pytest.mark.parametrize(
    ("arguments", "code", "message"), BAD_INPUT, ids=lambda value: " ".join(value)[-40:] if isinstance(value, list) else None
)
def test_bad_input_is_one_clear_line_and_starts_nothing(
    arguments: list[str], code: int, message: str, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        main(["ingest", *arguments, "--home", str(tmp_path / "home"), "--json"])
    out, err = capsys.readouterr()
    assert ended.value.code == code
    first_line, *rest = err.splitlines()
    assert message in first_line
    assert first_line.startswith("celebdit: ")
    assert len(rest) <= 1
    assert "Traceback" not in err
    assert json.loads(out)["error"]["exit_code"] == code
    assert not (tmp_path / "home").exists()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: path.write_bytes(b"PK\3\4" + bytes(3000)), "truncated or no zip"),
        (lambda path: path.write_bytes(path.read_bytes()[:-600]), "truncated or no zip"),
    ],
)
def test_a_damaged_archive_is_refused_with_exit_code_3(make: Any, message: str, archive: Path, tmp_path: Path, capsys: Any) -> None:
    damaged = tmp_path / "faces.zip"
    damaged.write_bytes(archive.read_bytes())
    make(damaged)
    with pytest.raises(SystemExit) as ended:
        main(["ingest", "--source", str(damaged), "--home", str(tmp_path / "home")])
    assert ended.value.code == 3
    assert message in capsys.readouterr().err


def test_too_many_rejects_end_with_exit_code_3_and_counts(archive: Path, embedded: Services) -> None:
    done = celebdit("ingest", "--source", str(archive), "--image-px", "32", "--json", home=embedded.home)
    assert done.code == 3
    assert "1 of 21 images were rejected, data.max_rejected is 0.01 (not_an_image 1)" in done.err
    assert done.json["error"]["exit_code"] == 3
    assert "Traceback" not in done.err
