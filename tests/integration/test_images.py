"""The container images: really built, looked into, and run through the whole pipeline. `make test-images` runs these, nothing else does.

They need podman, buildah or docker, and a base image: CELEBDIT_TEST_BASE_IMAGE names one; without it a Debian is made with debootstrap.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import docker
import pillow_heif
import psutil
import pytest
import requests
from celebdit_testing import cpu_image_uses
from celebdit_testing.command import COMMAND, celebdit
from celebdit_testing.processes import command_line
from celebdit_testing.waiting import wait_until
from PIL import Image

from components.deployment import IMAGE_USER
from components.errors import BadInput
from components.system.ports import free_port
from pipeline.container_engine import engine_address
from pipeline.containers import RUN_LABEL, TO_ALL, run_container
from pipeline.image_engines import push_image
from pipeline.images import read_lock, working_engine

pytestmark = [pytest.mark.images, pytest.mark.timeout(5400)]
CANARY = "canary-build-secret-0123456789"
OWN_BASE = "localhost/celebdit-test-debian:bookworm"
CHECKOUT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def engine() -> str:
    try:
        return working_engine(None)
    except BadInput as missing:
        pytest.skip(missing.message)


@pytest.fixture(scope="module")
def base_image(engine: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    if named := os.environ.get("CELEBDIT_TEST_BASE_IMAGE"):
        return named
    if subprocess.run([engine, "image", "inspect", OWN_BASE], capture_output=True, check=False).returncode == 0:
        return OWN_BASE
    if shutil.which("debootstrap") is None or os.getuid() != 0:
        pytest.skip("CELEBDIT_TEST_BASE_IMAGE is not set, and debootstrap, which could make one, needs to be installed and run as root")
    root, archive = tmp_path_factory.mktemp("debian") / "root", tmp_path_factory.mktemp("archive") / "root.tar"
    subprocess.run(
        ["debootstrap", "--variant=minbase", "--include=python3,python3-venv,ca-certificates", "bookworm", str(root)], check=True
    )
    shutil.rmtree(root / "var/cache/apt/archives")
    shutil.rmtree(root / "var/lib/apt/lists")
    subprocess.run(["tar", "-C", str(root), "-cf", str(archive), "."], check=True)
    subprocess.run([engine, "import", str(archive), OWN_BASE], check=True)
    return OWN_BASE


@pytest.fixture(scope="module")
def lock(engine: str, base_image: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both images, built as `make images` does, with a secret in the builder's environment."""
    path = tmp_path_factory.mktemp("lock") / "images.lock.json"
    options = ["--network=host"]
    if engine != "docker":
        options += ["--volume=/etc/ssl/certs:/etc/ssl/certs:ro"]
        cache = Path.home() / ".cache" / "uv"
        options += [f"--volume={cache}:/root/.cache/uv"] if cache.is_dir() else []
    command = [sys.executable, "-m", "pipeline.images", "--base-image", base_image, "--engine", engine, "--lock", str(path)]
    environment = {**os.environ, "AWS_SECRET_ACCESS_KEY": CANARY, "CELEBDIT_KFP_TOKEN": CANARY}
    subprocess.run([*command, *(f"--option={option}" for option in options)], check=True, cwd=CHECKOUT, env=environment)
    return path


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with engine_address() as engine_url:
        yield engine_url


def inside(engine: str, image: str, *command: str, options: Sequence[str] = ()) -> str:
    """Run a command in an image, with a read-only root file system and no privileges."""
    rules = ["--rm", "--read-only", "--tmpfs", "/tmp", "--cap-drop=ALL", "--network=none", *options]
    return subprocess.run([engine, "run", *rules, image, *command], check=True, capture_output=True, text=True).stdout


def inspected(engine: str, image: str) -> Any:
    return json.loads(subprocess.run([engine, "image", "inspect", image], check=True, capture_output=True, text=True).stdout)[0]


@pytest.mark.parametrize("target", ["cpu", "gpu"])
def test_an_image_says_what_it_is_and_is_not_root(engine: str, lock: Path, target: str) -> None:
    recorded = read_lock(lock)
    inspection = inspected(engine, getattr(recorded.images, target))
    labels = inspection["Config"]["Labels"]
    assert labels["org.opencontainers.image.revision"] == recorded.git_commit
    assert labels["io.celebdit.lock-sha256"] == recorded.pins_sha256[target]
    assert inspection["Config"]["User"] == f"{IMAGE_USER}:{IMAGE_USER}"
    assert inspection["Config"]["Entrypoint"] == ["/usr/bin/tini", "--"]


@pytest.mark.parametrize("target", ["cpu", "gpu"])
def test_an_image_runs_read_only_and_holds_neither_data_nor_secrets_nor_spare_tools(engine: str, lock: Path, target: str) -> None:
    image = getattr(read_lock(lock).images, target)
    assert "smoke" in inside(engine, image, "celebdit", "config", "presets")
    assert inside(engine, image, "id", "-u").strip() == str(IMAGE_USER)
    kinds = " -o ".join(f"-name '*.{ending}'" for ending in ("safetensors", "pth", "ckpt", "tar"))
    assert inside(engine, image, "sh", "-c", rf"find / -xdev \( {kinds} \) -size +100k 2>/dev/null; true") == ""
    compilers = inside(engine, image, "sh", "-c", "command -v gcc g++ cc; true").split()
    assert bool(compilers) == (target == "gpu")
    assert inside(engine, image, "sh", "-c", "command -v uv pip pip3; true") == ""
    described = json.dumps(inspected(engine, image)) + inside(engine, image, "env")
    described += subprocess.run([engine, "history", "--no-trunc", image], check=True, capture_output=True, text=True).stdout
    assert CANARY not in described
    files_with_canary = inside(engine, image, "sh", "-c", f"grep -rl {CANARY} /opt/project /etc /tmp /data /home /root 2>/dev/null; true")
    assert files_with_canary == ""


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a registry on this machine, which the engine is configured to use without TLS."""
    program = shutil.which("docker-registry")
    if program is None:
        pytest.skip("docker-registry is not installed")
    folder = tmp_path_factory.mktemp("registry")
    address = f"127.0.0.1:{free_port()}"
    storage = {"filesystem": {"rootdirectory": str(folder / "blobs")}}
    (folder / "config.yml").write_text(json.dumps({"version": 0.1, "storage": storage, "http": {"addr": address}}))
    (folder / "registries.conf").write_text(f'[[registry]]\nlocation = "{address}"\ninsecure = true\n')
    with (
        pytest.MonkeyPatch.context() as patch,
        subprocess.Popen([program, "serve", str(folder / "config.yml")], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server,
    ):
        patch.setenv("CONTAINERS_REGISTRIES_CONF", str(folder / "registries.conf"))
        wait_until(lambda: answers(address), timeout_s=60, alive=lambda: server.poll() is None)
        yield address
        server.terminate()


def answers(address: str) -> bool:
    try:
        return requests.get(f"http://{address}/v2/", timeout=5).ok
    except requests.ConnectionError:
        return False


@pytest.mark.parametrize("compression", ["gzip", "zstd"])
def test_pushed_layers_have_the_compression_that_was_asked_for(engine: str, registry: str, tmp_path: Path, compression: str) -> None:
    """Of a layer that the registry has not: one that it has stays, if the engine cannot force its compression (podman 4.3)."""
    if engine == "docker":
        pytest.skip("docker push takes no compression")
    (tmp_path / "Containerfile").write_text("FROM scratch\nCOPY text /\n")
    (tmp_path / "text").write_text(f"{uuid.uuid4()} in {compression}\n" * 100_000)
    name = f"{registry}/celebdit-test:{compression}"
    subprocess.run([engine, "build", "--quiet", "--tag", name, str(tmp_path)], check=True, capture_output=True)
    try:
        repository, _, digest = push_image(engine, name, compression=compression).partition("@")
    finally:
        subprocess.run([engine, "rmi", "--force", name], check=True, capture_output=True)
    address = f"http://{registry}/v2/{repository.partition('/')[2]}/manifests/{digest}"
    manifest = requests.get(address, headers={"Accept": "application/vnd.oci.image.manifest.v1+json"}, timeout=60).json()
    (layer,) = manifest["layers"]
    assert layer["mediaType"] == f"application/vnd.oci.image.layer.v1.tar+{compression}"
    assert layer["size"] < 20_000


GB = 10**9


@pytest.mark.parametrize(("target", "largest"), [("cpu", 1.8 * GB), ("gpu", 5.6 * GB)])
def test_an_image_is_no_larger_than_documented(engine: str, lock: Path, target: str, largest: float) -> None:
    """With the base of these tests, of 0.2 GB; docs/kubernetes.md says what is in them."""
    assert inspected(engine, getattr(read_lock(lock).images, target))["Size"] < largest


def test_both_images_have_packages_and_torch_in_the_same_layers(engine: str, lock: Path) -> None:
    images = read_lock(lock).images
    cpu, gpu = (inspected(engine, image)["RootFS"]["Layers"] for image in (images.cpu, images.gpu))
    shared = [layer for layer in cpu if layer in gpu]
    assert shared == cpu[: len(shared)] == gpu[: len(shared)]
    assert len(shared) >= 4  # the base, tini and the user, packages, torch


_LIBRARIES = """
import importlib, sys
names = "mlflow kfp.dsl.executor_main torch.distributed pyarrow.parquet boto3 kubernetes.client"
for name in names.split() + sys.argv[1:]:
    importlib.import_module(name)
import torch
assert not torch.cuda.is_available()
image = torch.randn(2, 3, 32, 32, requires_grad=True)
loss = torch.nn.functional.scaled_dot_product_attention(*(torch.nn.Conv2d(3, 8, 3, padding=1)(image).flatten(2).mT for _ in range(3))).sum()
loss.backward()
assert image.grad.isfinite().all()
assert torch.fft.ifft2(torch.fft.fft2(image)).real.allclose(image, atol=1e-4)
assert torch.linalg.svd(torch.eye(9))[1].allclose(torch.ones(9))
if "torchvision" in sys.modules:
    assert sys.modules["torchvision"].models.resnet18().eval()(torch.ones(1, 3, 64, 64)).shape == (1, 1000)
print("computed")
"""


@pytest.mark.parametrize("target", ["cpu", "gpu"])
def test_what_was_deleted_from_an_image_is_missed_by_no_library(engine: str, lock: Path, target: str) -> None:
    of_metrics = ["torch_fidelity", "torchvision", "scipy.linalg", "networkx"] if target == "gpu" else []
    assert "computed" in inside(engine, getattr(read_lock(lock).images, target), "python", "-c", _LIBRARIES, *of_metrics)


_ABSENT = """
import importlib.util
for name in "scipy torchvision torch_fidelity networkx sklearn matplotlib setuptools databricks.sdk torch._inductor.kernel".split():
    assert importlib.util.find_spec(name) is None, name
print("absent")
"""


def test_the_cpu_image_is_enough_for_its_steps_and_servers_and_has_no_more(engine: str, lock: Path, tmp_path: Path) -> None:
    """The same program runs in tests/unit/docker/test_cpu_image.py, with the packages hidden that the image lacks."""
    image = read_lock(lock).images.cpu
    assert "absent" in inside(engine, image, "python", "-c", _ABSENT)
    pillow_heif.register_heif_opener()
    Image.new("RGB", (64, 64), (200, 120, 40)).save(tmp_path / "image.heic", format="HEIF")
    shutil.copy(str(cpu_image_uses.__file__), tmp_path)
    shutil.copy(CHECKOUT / "docker" / "kubernetes" / "servers" / "start-mlflow.sh", tmp_path)
    tmp_path.chmod(0o755)
    program = ["python", "/uses/cpu_image_uses.py", "/uses/start-mlflow.sh", "/uses/image.heic"]
    assert "all used" in inside(engine, image, *program, options=[f"--volume={tmp_path}:/uses:ro"])


_WITHOUT_BYTECODE = """
import os, sys
import components.finalize.finalize, components.gate.gate, components.ingest.ingest, components.preflight.preflight, pipeline.resolution
import components.register.register, components.registry.rehearsal, components.serving.package, components.tracking.client, pipeline.cli
from components.storage import connect
connect("http://127.0.0.1:9")
import torch
files = {name: getattr(module, "__cached__", None) for name, module in list(sys.modules.items())}
bytecode = {name: file for name, file in files.items() if isinstance(file, str) and file.startswith("/opt/")}
assert len(bytecode) > 2000, len(bytecode)
print(*sorted(name for name, file in bytecode.items() if not os.path.exists(file)), sep="\\n")
"""


def test_the_modules_of_light_steps_are_compiled_in_the_image(engine: str, lock: Path) -> None:
    """The root file system of a pod is read-only: it would compile them at every start."""
    missing = inside(engine, read_lock(lock).images.cpu, "python", "-c", _WITHOUT_BYTECODE).split()
    assert len(missing) < 40, missing


def test_the_gpu_image_can_compile(engine: str, lock: Path) -> None:
    program = "import torch; f = torch.compile(lambda x: torch.relu(x) * 2 + 1); assert f(torch.ones(8)).sum() == 24; print('compiled')"
    rules = ["--rm", "--read-only", "--tmpfs", "/tmp:exec", "--cap-drop=ALL", "--network=none"]
    command = [engine, "run", *rules, read_lock(lock).images.gpu, "python", "-c", program]
    assert "compiled" in subprocess.run(command, check=True, capture_output=True, text=True).stdout


@pytest.mark.parametrize("status", [0, 3, 75])
def test_a_containers_status_is_the_tasks(lock: Path, address: str, status: int, capfd: pytest.CaptureFixture[str]) -> None:
    """Each several times: kfp's own runner reports some of them as successes, depending on who is faster."""
    client = docker.DockerClient(base_url=address)
    image = read_lock(lock).images.cpu
    for _ in range(4):
        command = ["python", "-c", f"print('said'); raise SystemExit({status})"]
        assert run_container(client, image, command, {}, network_mode="host", labels={"io.celebdit.test": "yes"}) == status
    assert capfd.readouterr().out.count("said") == 4
    assert client.containers.list(all=True, filters={"label": "io.celebdit.test=yes"}) == []
    client.close()


_SAVE = """
import signal, sys, time
from pathlib import Path
def save(number, frame):
    time.sleep(2)
    Path("/data/saved").touch()
    sys.exit(75)
signal.signal(signal.SIGTERM, save)
Path("/data/up").touch()
time.sleep(60)
"""


def test_a_stop_reaches_the_step_in_kfps_shell_and_waits_until_it_has_saved(lock: Path, address: str, tmp_path: Path) -> None:
    folder, client = tmp_path / "data", docker.DockerClient(base_url=address)
    folder.mkdir()
    folder.chmod(0o777)

    def stop() -> None:
        wait_until((folder / "up").exists, timeout_s=60)
        os.kill(os.getpid(), signal.SIGTERM)

    stopping = threading.Thread(target=stop)
    stopping.start()
    command = ["sh", "-ec", '_KFP_RUNTIME=true python3 -c "$0"\n', _SAVE]
    volumes = {str(folder): {"bind": "/data", "mode": "rw"}}
    with pytest.raises(KeyboardInterrupt):
        run_container(client, read_lock(lock).images.cpu, command, volumes, network_mode="host", environment=dict(TO_ALL))
    stopping.join()
    assert (folder / "saved").exists()
    client.close()


def test_the_smoke_pipeline_runs_in_containers_and_a_failing_step_is_its_own_error(lock: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    done = celebdit("run", "smoke", "--runner", "container", "--json", home=home, timeout_s=1800)
    assert done.code == 0, done.err
    assert done.json["model"]["version"] == "1"
    assert done.json["training_steps"] == 12
    source = tmp_path / "no images"
    source.mkdir()
    for index in range(48):
        (source / f"{index}.jpg").write_bytes(b"not an image")
    source.chmod(0o755)  # the user of the images reads it
    refused = celebdit("run", "smoke", "--runner", "container", f"data.source={source}", home=home, timeout_s=900)
    assert refused.code == 3, refused.err
    assert any("ingest" in line for line in refused.err.splitlines()[-5:])  # the reason; a page of all files and what to do follow
    texts = "".join(path.read_text(errors="replace") for path in (home / "runs").rglob("*") if path.is_file() and path.suffix != ".png")
    assert "AWS_SECRET_ACCESS_KEY=" not in texts
    assert not re.search(r"AWS_SECRET_ACCESS_KEY\W+[0-9A-Za-z_-]{32}", texts)


def test_a_killed_command_ends_its_containers_and_the_next_run_removes_them(lock: Path, address: str, tmp_path: Path) -> None:
    home, client = tmp_path / "home", docker.DockerClient(base_url=address)

    def ranks() -> list[psutil.Process]:
        lines = {process: " ".join(command_line(process)) for process in psutil.process_iter()}
        return [process for process, line in lines.items() if "components.train.worker" in line and str(home) in line]

    line = [*COMMAND, "run", "smoke", "--runner", "container", "training.total_steps=3000", "--home", str(home)]
    command = subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_until(lambda: len(ranks()) >= 2, timeout_s=600, alive=lambda: command.poll() is None)
    finally:
        command.kill()
        command.wait()
    wait_until(lambda: not ranks(), timeout_s=60)
    done = celebdit("run", "smoke", "--runner", "container", home=home, timeout_s=1800)
    assert done.code == 0, done.err
    assert client.containers.list(all=True, filters={"label": RUN_LABEL}) == []
    client.close()
