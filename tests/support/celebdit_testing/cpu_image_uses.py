"""Use all that the cpu image is for: the light steps' imports, a served network, all formats of images, both servers, KFP's executor.

A program for the image, and for an environment without the packages that the image lacks: `python cpu_image_uses.py START_MLFLOW HEIC`,
where START_MLFLOW is `start-mlflow.sh` and HEIC an image. Prints `all used` at its end. Nothing of tests/ is imported: the image has none.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path

_STEPS = """
components.finalize.finalize components.gate.gate components.ingest.ingest components.preflight.preflight components.register.register
components.registry.rehearsal components.serving.package components.serving.mlflow_model components.tracking.client
components.preflight.metric_weights components.train.train components.train.trainjob.grace
components.kube.client pipeline.cli pipeline.compile pipeline.resolution
pipeline.preflight_component pipeline.planning.steps model.memory_estimate
kfp.dsl.executor_main kfp_server_api kubernetes.client psycopg2.extras kagglehub huggingface_hub.hf_api optuna safetensors.torch
"""
_PASSWORD = "correct-horse-battery"
_S3_KEY = "key-of-s3"


def import_steps() -> None:
    """Import what the light steps, and commands in the image, import; resolve all presets, with the networks of their metrics."""
    from pipeline.config import load_config
    from pipeline.config_files import preset_names

    for name in _STEPS.split():
        import_module(name)
    for preset in preset_names():
        load_config(preset)


def draw_images() -> None:
    """Draw images as a served version does, from a network that is built without values first."""
    import torch

    from model.config import SamplingConfig
    from model.denoiser import build_denoiser
    from model.generator import Generator
    from pipeline.config import load_config

    config = load_config("smoke")
    weights = build_denoiser(config.network, seed=1).state_dict()
    generator = Generator(weights, config.network, config.diffusion, device=torch.device("cpu"))
    assert len(generator.draw(SamplingConfig(num_steps=2), [0, 1])) == 2


def read_and_write_tables(folder: Path) -> None:
    """Write and read a Parquet file, as the ingest step does, and as a dataset."""
    import pyarrow
    import pyarrow.dataset
    import pyarrow.parquet

    table = pyarrow.table({"name": ["a", "b"], "size": [1, 2]})
    pyarrow.parquet.write_table(table, folder / "table.parquet", compression="zstd")
    assert pyarrow.parquet.read_table(folder / "table.parquet", columns=["size"]).num_rows == 2
    assert pyarrow.dataset.dataset(folder / "table.parquet").count_rows() == 2


def decode_formats(heic: Path) -> None:
    """Decode an image of each format whose decoder is loaded late; the image can encode two of the three itself."""
    import io

    from PIL import Image

    from components.ingest.decoding.formats import load_all, open_image

    load_all()
    image, files = Image.new("RGB", (64, 64), (200, 120, 40)), [heic.read_bytes()]
    for kind in ("AVIF", "JXL"):
        stream = io.BytesIO()
        image.save(stream, format=kind)
        files.append(stream.getvalue())
    decoded = [open_image(data) for data in files]
    assert [one.format for one in decoded] == ["HEIF", "AVIF", "JXL"]
    for one in decoded:
        red, _, blue = one.convert("RGB").resize((1, 1)).tobytes()
        assert abs(red - 200) < 20
        assert abs(blue - 40) < 20


def use_servers(start_mlflow: Path, folder: Path) -> None:
    """Start S3 and, on it, MLflow with authentication, as their pods do, and ask them what runs and their readers ask."""
    import boto3
    import mlflow

    (folder / "data" / "mlflow").mkdir(parents=True)
    credentials = {"AWS_ACCESS_KEY_ID": _S3_KEY, "AWS_SECRET_ACCESS_KEY": _PASSWORD, "AWS_DEFAULT_REGION": "us-east-1"}
    database = f"sqlite:///{folder}/mlflow.db"
    os.environ.update(credentials, RCLONE_AUTH_KEY=f'"{_S3_KEY},{_PASSWORD}"', RCLONE_CONFIG="/dev/null")
    os.environ.update(MLFLOW_TRACKING_USERNAME="admin", MLFLOW_TRACKING_PASSWORD=_PASSWORD)
    with _server("rclone", "serve", "s3", "--addr", "127.0.0.1:{port}", "--etag-hash", "", str(folder / "data")) as s3:
        _wait_until(lambda: bool(boto3.client("s3", endpoint_url=s3).list_buckets()["Buckets"]))
        subprocess.run(["mlflow", "db", "upgrade", database], check=True, capture_output=True)
        of_mlflow = {
            "MLFLOW_BACKEND_STORE_URI": database,
            "POSTGRES_WAIT_S": "0",
            "MLFLOW_ADMIN_PASSWORD": _PASSWORD,
            "MLFLOW_FLASK_SERVER_SECRET_KEY": _PASSWORD,
            "MLFLOW_ARTIFACTS": "s3://mlflow",
            "MLFLOW_S3_ENDPOINT_URL": s3,
            "MLFLOW_LISTEN": "127.0.0.1",
            "MLFLOW_HOSTS": "127.0.0.1:*",
            "MLFLOW_WORKERS": "1",
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        }
        with _server("sh", str(start_mlflow), port_variable="MLFLOW_PORT", environment=of_mlflow) as address:
            _wait_until(lambda: _get(f"{address}/health") == b"OK")
            mlflow.set_tracking_uri(address)
            _record(mlflow.MlflowClient(), folder)
            assert b"<html" in _get(f"{address}/").lower()
            query = {"query": 'query { mlflowGetExperiment(input: {experimentId: "0"}) { experiment { name } } }'}
            assert json.loads(_get(f"{address}/graphql", query))["data"]["mlflowGetExperiment"]["experiment"]["name"] == "Default"


def _record(client: "mlflow.MlflowClient", folder: Path) -> None:  # type: ignore[name-defined]  # noqa: F821
    experiment = client.create_experiment("of the image")
    run_id = client.create_run(experiment).info.run_id
    for step in range(3):
        client.log_metric(run_id, "loss", 1.0 / (step + 1), step=step)
    client.log_text(run_id, "some text", "notes/a.txt")
    assert [file.path for file in client.list_artifacts(run_id, "notes")] == ["notes/a.txt"]
    assert Path(client.download_artifacts(run_id, "notes/a.txt", str(folder))).read_text() == "some text"
    assert len(client.get_metric_history(run_id, "loss")) == 3
    client.create_registered_model("of-the-image")
    version = client.create_model_version("of-the-image", f"runs:/{run_id}/notes", run_id)
    client.set_registered_model_alias("of-the-image", "champion", version.version)
    assert client.get_model_version_by_alias("of-the-image", "champion").run_id == run_id
    client.set_terminated(run_id)
    assert len(client.search_runs([experiment], "metrics.loss < 0.5 and attributes.status = 'FINISHED'")) == 1


@contextmanager
def _server(*command: str, port_variable: str | None = None, environment: dict[str, str] | None = None) -> Iterator[str]:
    """Start a server on a free port of the loopback interface, yield its address, and stop it."""
    import socket

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    variables = {**os.environ, **(environment or {}), **({port_variable: str(port)} if port_variable else {})}
    server = subprocess.Popen([part.format(port=port) for part in command], env=variables)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait(60)


def _get(address: str, query: object = None) -> bytes:
    import base64

    token = base64.b64encode(f"admin:{_PASSWORD}".encode()).decode()
    headers = {"Authorization": f"Basic {token}", "Content-Type": "application/json"}
    body = None if query is None else json.dumps(query).encode()
    with urllib.request.urlopen(urllib.request.Request(address, body, headers), timeout=60) as response:
        return bytes(response.read())


def _wait_until(answers: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 180
    while True:
        try:
            if answers():
                return
        except Exception as error:  # of boto3 and urllib, as long as the server starts
            if time.monotonic() > deadline:
                raise TimeoutError("the server does not answer") from error
        time.sleep(0.5)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        import_steps()
        draw_images()
        read_and_write_tables(Path(scratch))
        decode_formats(Path(sys.argv[2]))
        use_servers(Path(sys.argv[1]), Path(scratch))
    print("all used")
