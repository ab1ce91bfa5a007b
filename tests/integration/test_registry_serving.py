"""A version that draws: behind `celebdit serve`, MLflow and KServe's command, and through `celebdit sample`."""

import base64
import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
import yaml
from celebdit_testing.command import celebdit_here
from celebdit_testing.registered import SAMPLING, registered_faces, registry_context
from celebdit_testing.serving import Server, served
from PIL import Image

from components.errors import DataRefused
from components.manifests import CheckpointManifest
from components.registry.client import Registry
from components.runtime.context import StepContext
from components.serving.kserve import serving_command
from components.serving.package import check_image
from components.storage import StoreUri
from components.system.ports import free_port
from components.system.process import spawn, stop
from components.system.work_folders import WorkFolder
from components.weights.find import find_weights
from pipeline.services import Endpoints, Services


@pytest.fixture
def context(endpoints: Endpoints, tmp_path: Path) -> StepContext:
    return registry_context(endpoints, tmp_path)


@pytest.fixture(scope="module")
def shared_folder(session_folder: Path) -> Path:
    return session_folder / "faces"


@pytest.fixture(scope="module")
def model(embedded: Services, shared_folder: Path) -> CheckpointManifest:
    """The checkpoint that version 1 of "faces" was made from."""
    return registered_faces(embedded, shared_folder)


@pytest.fixture(scope="module")
def celebdit_server(model: CheckpointManifest, embedded: Services) -> Iterator[Server]:
    """`celebdit serve`, which runs what the register step tries a version out with."""
    with served(embedded.home, "faces@challenger") as server:
        yield server


@pytest.mark.fault
@pytest.mark.slow
def test_the_packed_code_is_what_answers_and_the_example_works(celebdit_server: Server, context: StepContext) -> None:
    files = Registry(context.tracking, "faces").files_of("1", context.scratch(WorkFolder.MODELS, "faces"))
    rows = celebdit_server.answer((files.folder / "serving_input_example.json").read_bytes())
    family = [process := psutil.Process(celebdit_server.process.pid), *process.children(recursive=True)]
    listening = {c.laddr for member in family for c in member.net_connections("tcp") if c.status == "LISTEN"}
    assert listening == {("127.0.0.1", celebdit_server.port)}
    images = [np.asarray(Image.open(io.BytesIO(base64.b64decode(row["image"])))) for row in rows]
    answer_bytes = base64.b64decode(rows[0]["image"])
    check_image(answer_bytes, image_px=16)
    with pytest.raises(DataRefused, match=r"16x16, it was trained at 32 px"):
        check_image(answer_bytes, image_px=32)
    with pytest.raises(DataRefused, match="not answer with a PNG"):
        check_image(answer_bytes[:40], image_px=16)
    drawn = find_weights("models:/faces/1", ema=None, context=context).generator(torch.device("cpu")).draw(SAMPLING, [0, 1], pass_images=1)
    assert np.array_equal(np.stack(images), drawn.permute(0, 2, 3, 1).numpy())


def test_celebdit_serve_and_its_kubernetes_manifest_both_answer(
    celebdit_server: Server, embedded: Services, context: StepContext, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    printed = celebdit_here("serve", "faces@challenger", "--kubernetes", "--gpus", "1", home=embedded.home, capture=capsys)
    assert printed.code == 0, printed.err
    assert "the embedded S3 server of this machine, which pods do not reach" in printed.err
    manifest = yaml.safe_load(printed.out)
    assert (manifest["kind"], manifest["apiVersion"]) == ("InferenceService", "serving.kserve.io/v1beta1")
    (container,) = manifest["spec"]["predictor"]["containers"]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == "1"
    location = StoreUri.parse(next(item["value"] for item in container["env"] if item["name"] == "STORAGE_URI"))
    for secret in (context.settings.mlflow_uri, os.environ["AWS_SECRET_ACCESS_KEY"]):
        assert secret not in printed.out
    # What KServe does: copy the location to /mnt/models, then run the command.
    mounted = tmp_path / "models"
    for item in context.store.list(location):
        context.store.get_file(item.uri, mounted / item.uri.relative_to(location))
    port = free_port()
    digest = Registry(context.tracking, "faces").version("1").tags["manifest.digest"]
    assert container["args"] == serving_command("/mnt/models", digest, "0.0.0.0", 8080)
    in_cluster = spawn(
        [sys.executable, *serving_command(str(mounted), digest, "127.0.0.1", port)],
        environment={**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
        stdout=subprocess.DEVNULL,
        new_group=True,
    )
    try:
        question = json.dumps({"dataframe_records": [{"seed": 5}]}).encode()
        answers = [server.answer(question)[0]["image"] for server in (celebdit_server, Server(in_cluster, port))]
        images = [base64.b64decode(answer) for answer in answers]
        busy = celebdit_here("serve", "faces@challenger", "--port", str(port), home=embedded.home, capture=capsys)
        assert busy.code == 2
        assert f"port {port} of 127.0.0.1 cannot be used" in busy.err
    finally:
        stop(in_cluster, grace_s=10)
    assert images[0] == images[1]
    assert Image.open(io.BytesIO(images[0])).size == (16, 16)


def test_samples_can_be_drawn_from_wherever_weights_are(
    model: CheckpointManifest,
    context: StepContext,
    embedded: Services,
    shared_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    checkpoint = model
    local = next((shared_folder / checkpoint.run_key).glob("step-*"))
    options = ("--count", "3", "--steps", "2", "--sampler", "euler", "--batch", "1", "--json")
    sources = [str(local), checkpoint.uri, checkpoint.run_key, "models:/faces@challenger"]
    drawn = [
        celebdit_here("sample", source, *options, "--out", str(tmp_path / f"{n}.png"), home=embedded.home, capture=capsys)
        for n, source in enumerate(sources)
    ]
    assert [done.code for done in drawn] == [0, 0, 0, 0], drawn[-1].err
    assert len({(tmp_path / f"{n}.png").read_bytes() for n in range(4)}) == 1, "the same seed gives the same bytes"
    assert {done.json["checkpoint_digest"] for done in drawn} == {checkpoint.digest}
    folder = celebdit_here(
        "sample", str(local), *options, "--first", "1", "--seed", "3", "--out", str(tmp_path / "many"), home=embedded.home, capture=capsys
    )
    assert sorted(path.name for path in (tmp_path / "many").iterdir()) == ["000001.png", "000002.png", "000003.png"]
    assert len(folder.json["files"]) == 3
    for arguments, code, message in (
        ((str(tmp_path),), 2, "is not a checkpoint"),
        (("nothing-like-this",), 2, "is not a checkpoint folder"),
        (("models:/faces@nobody",), 2, "no alias 'nobody'"),
        (("models:faces",), 2, "is not a model version"),
        ((str(local), "--ema", "0.3"), 2, "no average '0.3'"),
        ((str(local), "--out", str(tmp_path / "no" / "where.png")), 2, "cannot be written"),
        ((str(local), "--device", "cuda"), 2, "no CUDA device"),
    ):
        if "--device" in arguments and torch.cuda.is_available():
            continue
        wrong = celebdit_here("sample", *arguments, home=embedded.home, capture=capsys)
        assert (wrong.code, message in wrong.err, "Traceback" in wrong.err) == (code, True, False), wrong.err
    damaged = local / "ema-0.1.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"x")
    refused = celebdit_here("sample", str(local), "--out", str(tmp_path / "x.png"), home=embedded.home, capture=capsys)
    assert refused.code == 3
    assert "is incomplete or corrupt" in refused.err
