"""The registry on a real MLflow server: racing promoters, racing registrations, what is stored, and who hears of it."""

import base64
import io
import json
import os
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
import yaml
from celebdit_testing.command import Finished, celebdit, celebdit_here
from celebdit_testing.recipes import DIGEST, dataset_manifest, tiny_network
from celebdit_testing.steps import notes, step_context
from celebdit_testing.trained import commit_checkpoint
from PIL import Image

from components.checkpoints import SNAPSHOTS, CheckpointStore
from components.context import StepContext
from components.errors import BadInput, DataRefused, GateFailed, TrackingUnavailable
from components.kserve import serving_command
from components.manifests import CheckpointManifest, EvaluationReport, GateDecision
from components.process import spawn, stop
from components.promotions import standing_after
from components.register.register import run as register
from components.registry import Registry
from components.registry_config import RegistryConfig
from components.served_model import check_answer, free_port, served
from components.storage import StoreUri
from components.weights import find_weights
from model.checkpoint import publish, read
from model.config import SamplingConfig
from pipeline.services import Endpoints, Services

SAMPLING = SamplingConfig(sampler="euler", num_steps=2, ema="0.1")
PROMOTERS, VERSIONS = 20, 5


@pytest.fixture
def context(endpoints: Endpoints, tmp_path: Path) -> StepContext:
    return step_context(
        "register", tmp_path, endpoints.environment["CELEBDIT_STORE"], endpoint=endpoints.s3_url, mlflow_uri=endpoints.mlflow_url
    )


def report_of(checkpoint: CheckpointManifest) -> EvaluationReport:
    return EvaluationReport(
        uri="s3://bucket/evaluation",
        protocol_digest="a" * 64,
        protocol={"name": "custom", "num_images": 16},
        run_key=checkpoint.run_key,
        checkpoint_uri=checkpoint.uri,
        checkpoint_digest=checkpoint.digest,
        checkpoint_step=checkpoint.step,
        dataset_digest=DIGEST,
        headline="eval/fd_randconv_16",
        metrics={"eval/fd_randconv_16": 12.5, "eval/fd_randconv_16_std": 0.5},
        grid_uri="s3://bucket/grid.png",
    )


def passed(checkpoint: CheckpointManifest) -> GateDecision:
    return GateDecision(decision="pass", reasons=["good"], checkpoint_digest=checkpoint.digest)


def registered(context: StepContext, checkpoint: CheckpointManifest, name: str) -> str:
    report = report_of(checkpoint)
    config = RegistryConfig(model_name=name)
    return register(checkpoint, dataset_manifest(), report, passed(checkpoint), SAMPLING, config, context).version


@pytest.fixture(scope="module")
def shared_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("registry")


@pytest.fixture(scope="module")
def model(embedded: Services, shared_folder: Path) -> tuple[str, CheckpointManifest]:
    """A model with one registered version, and the checkpoint that it was made from."""
    found = embedded.wait()
    with pytest.MonkeyPatch.context() as patch:
        for key, value in found.environment.items():
            patch.setenv(key, value)
        context = step_context(
            "register", shared_folder, found.environment["CELEBDIT_STORE"], endpoint=found.s3_url, mlflow_uri=found.mlflow_url
        )
        checkpoint = commit_checkpoint(context, shared_folder, seed=1)
        assert registered(context, checkpoint, "faces") == "1"
        return "faces", checkpoint


def test_a_version_holds_a_card_a_signature_an_example_and_no_pickle(model: tuple[str, CheckpointManifest], context: StepContext) -> None:
    name, checkpoint = model
    registry = Registry(context.tracking, name)
    version = registry.version("1")
    assert version.tags["serving.trial"] == "passed"
    assert registry.aliases() == {"challenger": "1"}
    files = registry.files_of("1", context.scratch("looked-at"))
    kinds = {path.suffix for path in files.folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts}
    assert kinds <= {"", ".py", ".safetensors", ".json", ".md", ".yaml", ".txt"}, kinds
    card = (files.folder / "README.md").read_text()
    assert card == version.description
    for said in (
        "# faces: face generator",
        "Licence of the data: **CC0-1.0**",
        '"depth": 1',
        "| `eval/fd_randconv_16` | 12.5 |",
        "## Samples",
        "## Limits",
        "celebdit serve faces@champion",
        checkpoint.digest,
    ):
        assert said in card, said
    description = yaml.safe_load((files.folder / "MLmodel").read_text())
    assert json.loads(description["signature"]["inputs"])[0]["name"] == "seed"
    assert {param["name"] for param in json.loads(description["signature"]["params"])} == {"num_steps", "sampler"}
    example = json.loads((files.folder / "serving_input_example.json").read_text())
    assert example["params"] == {"num_steps": 2, "sampler": "euler"}
    requirements = (files.folder / "requirements.txt").read_text()
    assert "psutil==" in requirements
    assert "kfp" not in requirements


def test_the_packed_code_is_what_answers_and_the_example_works(model: tuple[str, CheckpointManifest], context: StepContext) -> None:
    files = Registry(context.tracking, "faces").files_of("1", context.scratch("served"))
    example = (files.folder / "serving_input_example.json").read_bytes()
    with served(files.folder) as (url, process):
        request = urllib.request.Request(f"{url}/invocations", example, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=60) as answer:
            rows = json.load(answer)["predictions"]
        listening = [c.laddr.ip for c in psutil.Process(process.pid).net_connections("tcp") if c.status == "LISTEN"]
    images = [np.asarray(Image.open(io.BytesIO(base64.b64decode(row["image"])))) for row in rows]
    assert set(listening) == {"127.0.0.1"}
    answer_bytes = base64.b64decode(rows[0]["image"])
    check_answer(answer_bytes, image_px=16)
    with pytest.raises(DataRefused, match=r"16x16, it was trained at 32 px"):
        check_answer(answer_bytes, image_px=32)
    with pytest.raises(DataRefused, match="not answer with a PNG"):
        check_answer(answer_bytes[:40], image_px=16)
    drawn = find_weights("models:/faces/1", ema=None, context=context).generator(torch.device("cpu")).draw(SAMPLING, [0, 1], pass_images=1)
    assert np.array_equal(np.stack(images), drawn.permute(0, 2, 3, 1).numpy())


def test_a_version_that_does_not_answer_is_refused_and_gets_no_alias(
    model: tuple[str, CheckpointManifest], context: StepContext, tmp_path: Path
) -> None:
    other = commit_checkpoint(context, tmp_path, seed=9)
    fits_not = other.model_copy(update={"recipe": {**other.recipe, "network": tiny_network(width=64).model_dump(mode="json")}})
    with pytest.raises(DataRefused, match="does not work when it is served"):
        registered(context, fits_not, "broken")
    registry = Registry(context.tracking, "broken")
    assert registry.aliases() == {}
    assert registry.version("1").tags["serving.trial"].startswith("failed")


def test_changed_weights_in_the_artifact_store_are_refused(
    model: tuple[str, CheckpointManifest], context: StepContext, tmp_path: Path
) -> None:
    registry = Registry(context.tracking, "faces")
    files = registry.files_of("1", tmp_path / "models")
    data = bytearray(files.weights.read_bytes())
    data[-1] ^= 1
    files.weights.write_bytes(data)
    with pytest.raises(DataRefused, match="not those that were registered"):
        registry.files_of("1", tmp_path / "models")
    assert registry.files_of("1", tmp_path / "models").weights.exists(), "fetched again"


def test_racing_registrations_of_one_checkpoint_make_one_version(context: StepContext, tmp_path: Path) -> None:
    checkpoint = commit_checkpoint(context, tmp_path, seed=2)
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "MLmodel").write_text("{}")
    run_id = context.tracking.step_run("train", run_key=checkpoint.run_key).info.run_id
    Registry(context.tracking, "raced").ensure("raced")
    start = threading.Barrier(6)

    def submit(number: int) -> str:
        own = step_context("register", tmp_path / str(number), str(context.root), endpoint=None, mlflow_uri=context.settings.mlflow_uri)
        registry = Registry(own.tracking, "raced")
        model_id = own.tracking.evaluated_checkpoint(run_id, report_of(checkpoint))
        start.wait()
        tags = {"by": str(number)}
        return str(
            registry.add_version(
                folder, checkpoint_digest=checkpoint.digest, model_id=model_id, run_id=run_id, tags=tags, description=""
            ).version
        )

    with ThreadPoolExecutor(6) as pool:
        numbers = list(pool.map(submit, range(6)))
    there = [str(version.version) for version in Registry(context.tracking, "raced").versions()]
    assert len(there) == 1, there
    assert set(numbers) == set(there)
    assert submit_again(context, folder, checkpoint, run_id) == there[0]


def submit_again(context: StepContext, folder: Path, checkpoint: CheckpointManifest, run_id: str) -> str:
    registry = Registry(context.tracking, "raced")
    return str(
        registry.add_version(folder, checkpoint_digest=checkpoint.digest, model_id="unused", run_id=run_id, tags={}, description="").version
    )


def bare_versions(context: StepContext, name: str, count: int, *, gate: str = "pass") -> Registry:
    registry = Registry(context.tracking, name)
    registry.ensure(name)
    for _ in range(count):
        context.tracking.client.create_model_version(name, source="s3://bucket/nowhere", tags={"gate.decision": gate})
    return registry


def test_twenty_racing_promoters_end_where_some_order_of_them_would(context: StepContext, tmp_path: Path) -> None:
    registry = bare_versions(context, "contested", VERSIONS)
    start = threading.Barrier(PROMOTERS)

    def promote(number: int) -> None:
        own = step_context("promote", tmp_path / str(number), str(context.root), endpoint=None, mlflow_uri=context.settings.mlflow_uri)
        mine = Registry(own.tracking, "contested")
        start.wait()
        if number % 7 == 6:
            try:
                mine.rollback(reason=f"rollback {number}", by=f"person-{number}")
            except BadInput:  # nothing to go back to yet
                pass
        else:
            mine.promote(str(number % VERSIONS + 1), reason=f"promotion {number}", by=f"person-{number}")

    with ThreadPoolExecutor(PROMOTERS) as pool:
        list(pool.map(promote, range(PROMOTERS)))
    moves = registry.moves()
    said = {move.reason for move in moves}
    assert {f"promotion {number}" for number in range(PROMOTERS) if number % 7 != 6} <= said, "every move is in the log"
    assert len(moves) == len({move.id for move in moves})
    standing = standing_after(moves)
    aliases = registry.aliases()
    assert (aliases.get("champion"), aliases.get("previous")) == (standing.champion, standing.previous)
    assert registry.reconcile() == standing


def test_a_promoter_that_died_before_it_moved_the_alias_is_finished_by_the_next(context: StepContext) -> None:
    registry = bare_versions(context, "halfway", 2)
    registry.promote("1", reason="first", by="a")
    put, registry._put = registry._put, lambda *_: (_ for _ in ()).throw(KeyboardInterrupt)  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        registry.promote("2", reason="second", by="b")
    registry._put = put  # type: ignore[method-assign]
    assert registry.aliases()["champion"] == "1"
    assert Registry(context.tracking, "halfway").reconcile().champion == "2"
    assert registry.aliases() == {"champion": "2", "previous": "1"}


def test_the_log_cannot_be_rewritten_and_a_failed_gate_needs_force(context: StepContext) -> None:
    registry = bare_versions(context, "strict", 1, gate="fail")
    with pytest.raises(GateFailed, match="gate decision fail"):
        registry.promote("1", reason="please", by="a")
    with pytest.raises(BadInput, match="no version '9'"):
        registry.promote("9", reason="please", by="a")
    assert registry.aliases() == {}
    registry.promote("1", reason="we know", by="a", force=True)
    (move,) = registry.moves()
    assert move.forced
    (log,) = context.tracking.search({"celebdit.kind": "registry-log", "celebdit.model": "strict"})
    with pytest.raises(Exception, match=r"[Cc]hanging param"):
        context.tracking.client.log_param(log.info.run_id, move.id, "something else")
    with pytest.raises(BadInput, match="no earlier champion"):
        registry.rollback(reason="oops", by="a")


def test_an_mlflow_that_is_away_is_said_as_such(tmp_path: Path) -> None:
    away = step_context("models", tmp_path, "s3://bucket/x", endpoint=None, mlflow_uri=f"http://127.0.0.1:{free_port()}")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
        with pytest.raises(TrackingUnavailable, match="MLflow at"):
            Registry(away.tracking, "faces").versions()


@pytest.fixture
def hook() -> Iterator[tuple[str, list[Any]]]:
    heard: list[Any] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            heard.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200 if self.path == "/good" else 500)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", heard
    finally:
        server.shutdown()


def test_the_commands_of_a_person_who_promotes(
    context: StepContext, embedded: Services, hook: tuple[str, list[Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    bare_versions(context, "people", 2)
    url, heard = hook

    def models(*arguments: str, **environment: str) -> Any:
        with pytest.MonkeyPatch.context() as patch:
            for name, value in environment.items():
                patch.setenv(name, value)
            return celebdit_here("models", *arguments, "--model", "people", home=embedded.home, capture=capsys)

    promoted = models("promote", "1", "--reason", "first", CELEBDIT_WEBHOOK_URL=f"{url}/good")
    assert promoted.code == 0, promoted.err
    assert heard[0]["action"] == "promote"
    assert (heard[0]["model"], heard[0]["champion"], heard[0]["reason"]) == ("people", "1", "first")
    loud = models("promote", "2", "--reason", "second", "--json", CELEBDIT_WEBHOOK_URL=f"{url}/secret-path")
    assert loud.code == 0
    assert loud.json == {"model": "people", "champion": "2", "previous": "1"}
    assert "did not hear of it: it answered 500" in loud.err
    assert "secret-path" not in loud.err + loud.out
    back = models("rollback", "--reason", "no good", "--json")
    assert back.json == {"model": "people", "champion": "1", "previous": None}
    shown = models("show", "champion", "--json").json
    assert shown["version"] == "1"
    assert [move["action"] for move in shown["moves"]] == ["promote"]
    assert len(models("history", "--json").json["moves"]) == 3
    for arguments, said in (
        (("promote", "1"), "Missing option '--reason'"),
        (("show", "nobody"), "no alias 'nobody'"),
        (("promote", "1", "--reason", " "), "needs a reason"),
    ):
        wrong = models(*arguments)
        assert wrong.code == 2
        assert said in wrong.err
        assert "Traceback" not in wrong.err
    assert "not an http or https address" in models("rollback", "--reason", "x", CELEBDIT_WEBHOOK_URL="file:///etc/passwd").err


def wait_until(answers: Callable[[], bool], *, deadline_s: float = 250) -> None:
    end = time.monotonic() + deadline_s
    while not answers():
        assert time.monotonic() < end
        time.sleep(0.3)


def test_celebdit_serve_and_its_kubernetes_manifest_both_answer(
    model: tuple[str, CheckpointManifest], embedded: Services, context: StepContext, tmp_path: Path
) -> None:
    printed = celebdit("serve", "faces@challenger", "--kubernetes", "--gpus", "1", home=embedded.home)
    assert printed.code == 0, printed.err
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
    assert container["args"] == serving_command("/mnt/models", "0.0.0.0", 8080)
    in_cluster = spawn(
        [sys.executable, *serving_command(str(mounted), "127.0.0.1", port)],
        environment={**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
        stdout=subprocess.DEVNULL,
        new_group=True,
    )
    own_port = free_port()
    own = spawn(
        [sys.executable, "-m", "pipeline.cli", "serve", "faces@challenger", "--port", str(own_port), "--home", str(embedded.home)],
        stdout=subprocess.DEVNULL,
        new_group=True,
    )
    try:
        pictures = [asked(port, in_cluster), asked(own_port, own)]
        busy = celebdit("serve", "faces@challenger", "--port", str(own_port), home=embedded.home)
        assert busy.code == 2
        assert f"port {own_port} of 127.0.0.1 cannot be used" in busy.err
    finally:
        stop(in_cluster, grace_s=10)
        stop(own, grace_s=10)
    assert pictures[0] == pictures[1]
    assert Image.open(io.BytesIO(pictures[0])).size == (16, 16)


def asked(port: int, process: "subprocess.Popen[bytes]") -> bytes:
    question = json.dumps({"dataframe_records": [{"seed": 5}]}).encode()
    found: list[bytes] = []

    def answered() -> bool:
        assert process.poll() is None, "the server ended"
        try:
            request = urllib.request.Request(f"http://127.0.0.1:{port}/invocations", question, {"Content-Type": "application/json"})
            with urllib.request.urlopen(request, timeout=30) as answer:
                found.append(base64.b64decode(json.load(answer)["predictions"][0]["image"]))
        except OSError:
            return False
        return True

    wait_until(answered)
    return found[0]


def test_samples_can_be_drawn_from_wherever_weights_are(
    model: tuple[str, CheckpointManifest],
    context: StepContext,
    embedded: Services,
    shared_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    _, checkpoint = model
    local = next((shared_folder / checkpoint.run_key).glob("step-*"))
    wanted = ("--count", "3", "--steps", "2", "--sampler", "euler", "--batch", "1", "--json")
    sources = [str(local), checkpoint.uri, checkpoint.run_key, "models:/faces@challenger"]
    drawn = [
        celebdit_here("sample", source, *wanted, "--out", str(tmp_path / f"{n}.png"), home=embedded.home, capture=capsys)
        for n, source in enumerate(sources)
    ]
    assert [done.code for done in drawn] == [0, 0, 0, 0], drawn[-1].err
    assert len({(tmp_path / f"{n}.png").read_bytes() for n in range(4)}) == 1, "the same seed gives the same bytes"
    assert {done.json["checkpoint_digest"] for done in drawn} == {checkpoint.digest}
    folder = celebdit_here(
        "sample", str(local), *wanted, "--first", "1", "--seed", "3", "--out", str(tmp_path / "many"), home=embedded.home, capture=capsys
    )
    assert sorted(path.name for path in (tmp_path / "many").iterdir()) == ["000001.png", "000002.png", "000003.png"]
    assert len(folder.json["files"]) == 3
    for arguments, code, said in (
        ((str(tmp_path),), 2, "is not a checkpoint"),
        (("nothing-like-this",), 2, "is neither a checkpoint"),
        (("models:/faces@nobody",), 2, "no alias 'nobody'"),
        (("models:faces",), 2, "is not a model version"),
        ((str(local), "--ema", "0.3"), 2, "no average '0.3'"),
        ((str(local), "--out", str(tmp_path / "no" / "where.png")), 2, "cannot be written"),
        ((str(local), "--device", "cuda"), 2, "no CUDA device"),
    ):
        if "--device" in arguments and torch.cuda.is_available():
            continue
        wrong = celebdit_here("sample", *arguments, home=embedded.home, capture=capsys)
        assert (wrong.code, said in wrong.err, "Traceback" in wrong.err) == (code, True, False), wrong.err
    damaged = local / "ema-0.1.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"x")
    refused = celebdit_here("sample", str(local), "--out", str(tmp_path / "x.png"), home=embedded.home, capture=capsys)
    assert refused.code == 3
    assert "is not whole" in refused.err


def test_samples_can_be_guided_by_a_snapshot_or_a_smaller_network(
    context: StepContext, embedded: Services, shared_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = commit_checkpoint(context, shared_folder, seed=11)
    smaller = commit_checkpoint(context, shared_folder, seed=12, width=16)
    early = commit_checkpoint(context, tmp_path, seed=13)
    snapshots = CheckpointStore(context.store, context.root / "runs" / checkpoint.run_key, folder=SNAPSHOTS)
    state = read(next((tmp_path / early.run_key).glob("step-*")))
    snapshots.upload(publish(replace(state, step=3), tmp_path / "early"), "attempt-1")
    source = checkpoint.run_key
    local = str(next((shared_folder / source).glob("step-*")))

    def draw(name: str, source: str, *arguments: str) -> Finished:
        wanted = ("--count", "2", "--steps", "2", "--sampler", "euler", "--batch", "2", "--json")
        target = str(tmp_path / f"{name}.png")
        return celebdit_here("sample", source, *wanted, "--out", target, *arguments, home=embedded.home, capture=capsys)

    ways = {
        "alone": (source,),
        "one": (source, "--guide", f"{source}@3", "--guidance", "1"),
        "snapshot": (source, "--guide", f"{source}@3"),
        "snapshot of a folder": (local, "--guide", f"{source}@3", "--guidance", "1.5"),
        "far": (source, "--guide", f"{source}@3", "--guidance", "4"),
        "smaller": (f"{source}@7", "--guide", smaller.uri, "--guide-ema", "none"),
        "unheard": (source, "--guide", smaller.uri, "--guidance-interval", "0.6", "0.9"),
    }
    drawn = {name: draw(name, *arguments) for name, arguments in ways.items()}
    assert {name: done.code for name, done in drawn.items()} == dict.fromkeys(ways, 0), [done.err for done in drawn.values()]
    images = {name: (tmp_path / f"{name}.png").read_bytes() for name in ways}
    assert images["one"] == images["unheard"] == images["alone"]
    assert images["snapshot"] == images["snapshot of a folder"]
    assert len({images[name] for name in ("alone", "snapshot", "far", "smaller")}) == 4
    assert drawn["alone"].json["guidance"] is None
    told = drawn["smaller"].json["guidance"]
    assert (told["checkpoint_digest"], told["ema"], told["weight"], told["interval"]) == (smaller.digest, "none", 1.5, [0.0, 1.0])
    assert drawn["snapshot"].json["guidance"]["guide"].endswith(f"runs/{source}/snapshots/step-000000003/attempt-1")
    assert f"guided by {smaller.uri}, average none, weight 1.5" in drawn["smaller"].err

    other_side = commit_checkpoint(context, shared_folder, seed=14, image_px=32)
    for arguments, said in (
        (("--guide", f"{source}@4"), f"run '{source}' has stored nothing of step 4"),
        (("--guide", source), "these are the weights that it should guide"),
        (("--guide", other_side.uri), "the guide has image_px 32, the model that it should guide 16"),
        (("--guide", f"{source}@3", "--guidance", "0.5"), "--guidance 0.5 must lie between 1 and 20"),
        (("--guide", f"{source}@3", "--guidance", "nan"), "--guidance nan must lie between 1 and 20"),
        (("--guide", f"{source}@3", "--guidance-interval", "0.7", "0.7"), "must be two rising times between 0 and 1"),
        (("--guide", " "), "SOURCE is empty"),
        (("--guidance", "2"), "--guidance needs --guide"),
    ):
        wrong = draw("wrong", source, *arguments)
        assert (wrong.code, said in wrong.err, "Traceback" in wrong.err) == (2, True, False), wrong.err
    assert not (tmp_path / "wrong.png").exists()


def test_registering_twice_is_one_version_and_says_so(model: tuple[str, CheckpointManifest], context: StepContext) -> None:
    name, checkpoint = model
    assert registered(context, checkpoint, name) == "1"
    assert any("already, nothing to do" in note for note in notes(context))
    other = report_of(checkpoint).model_copy(update={"checkpoint_digest": "0" * 64})
    with pytest.raises(DataRefused, match="of another checkpoint"):
        register(checkpoint, dataset_manifest(), other, passed(checkpoint), SAMPLING, RegistryConfig(model_name=name), context)
