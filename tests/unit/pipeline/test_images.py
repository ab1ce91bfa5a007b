"""`make images` without a build: what it finds up to date, and what it pins. tests/integration/test_images.py builds."""

import hashlib
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
from celebdit_testing.wheels import make_wheel
from click.testing import CliRunner

from components.deployment import CPU_IMAGE, GPU_IMAGE
from components.errors import BadInput, TemporaryFailure
from pipeline.image_engines import push_image
from pipeline.image_inputs import context_sha256, pin_cpu_wheels
from pipeline.images import ImagesLock, main, read_lock

DIGEST = "sha256:" + 64 * "0"
ENGINE = f"""#!/bin/sh
# Stands for podman, which not every machine has: writes its commands down, and fails to inspect what it did not build.
echo "$@" >> commands
case "$1" in
  info) exit 0 ;;
  images) echo {DIGEST} ;;
  inspect) test -e built ;;
  build) touch built ;;
  push)
    if test "$2" = --help; then test ! -e push-help || cat push-help; exit; fi
    while test "$1" != --digestfile; do shift; done; echo {DIGEST} > "$2" ;;
esac
"""


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for folder in ("requirements", "docker", "model", "components", "pipeline", "bin"):
        (tmp_path / folder).mkdir()
    for name in ("requirements/cpu.txt", "requirements/run.txt", "docker/Dockerfile", "model/network.py"):
        (tmp_path / name).write_text("x")
    engine = tmp_path / "bin" / "podman"
    engine.write_text(ENGINE)
    engine.chmod(engine.stat().st_mode | stat.S_IXUSR)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=":")
    return tmp_path


def make_images(*options: str) -> tuple[str, list[str]]:
    """What the command says, and what it built."""
    commands = Path("commands")
    commands.write_text("")
    result = CliRunner().invoke(main, ["--engine", "podman", "--base-image", "base@sha256:1", *options])
    assert result.exit_code == 0, result.output
    return result.output, re.findall(r"^build .*--target (\S+)", commands.read_text(), re.MULTILINE)


def test_a_device_is_no_lock_file() -> None:
    with pytest.raises(BadInput, match="larger than 1048576 bytes"):
        read_lock(Path("/dev/zero"))


def test_with_an_up_to_date_lock_nothing_is_built(checkout: Path) -> None:
    assert make_images()[1] == ["cpu", "gpu"]
    said, built = make_images()
    assert built == []
    assert "nothing to build" in said
    assert read_lock(Path("images.lock.json")).images.cpu == f"{CPU_IMAGE.partition(':')[0]}@{DIGEST}"
    (checkout / "components" / "__pycache__").mkdir()
    (checkout / "components" / "__pycache__" / "x.cpython-311.pyc").write_bytes(b"bytecode")
    assert make_images()[1] == []
    assert make_images("--force")[1] == ["cpu", "gpu"]


@pytest.mark.parametrize(
    "changed", ["requirements/run.txt", "docker/Dockerfile", "docker/slim.py", "model/network.py", "pipeline/presets/x.toml"]
)
def test_a_changed_file_is_built(checkout: Path, changed: str) -> None:
    make_images()
    (checkout / changed).parent.mkdir(exist_ok=True)
    (checkout / changed).write_text("changed")
    assert make_images()[1] == ["cpu", "gpu"]


def test_another_base_a_registry_or_a_lost_image_is_built(checkout: Path) -> None:
    make_images()
    assert make_images("--base-image", "base@sha256:2")[1] == ["cpu", "gpu"]
    assert make_images("--base-image", "base@sha256:2", "--registry", "registry.example/team")[1] == ["cpu", "gpu"]
    make_images()
    Path("built").unlink()
    assert make_images()[1] == ["cpu", "gpu"]


def test_a_lock_of_an_earlier_release_is_read_and_not_trusted(checkout: Path) -> None:
    make_images()
    lock = read_lock(Path("images.lock.json"))
    old = lock.model_dump(exclude={"context_sha256"})
    Path("images.lock.json").write_text(ImagesLock.model_validate(old).model_dump_json())
    assert make_images()[1] == ["cpu", "gpu"]


def test_layers_are_compressed_as_asked_and_docker_refuses(checkout: Path) -> None:
    assert push_image("podman", GPU_IMAGE, compression="zstd") == f"{GPU_IMAGE.partition(':')[0]}@{DIGEST}"
    assert "\npush --compression-format zstd --digestfile" in Path("commands").read_text()
    Path("push-help").write_text("--compression-format string\n--force-compression\n")
    push_image("podman", GPU_IMAGE, compression="zstd")
    assert "\npush --compression-format zstd --force-compression --digestfile" in Path("commands").read_text()
    with pytest.raises(BadInput, match="docker push cannot compress layers with zstd"):
        push_image("docker", GPU_IMAGE, compression="zstd")


@contextmanager
def simple_index(folder: Path) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(SimpleHTTPRequestHandler, directory=str(folder)))
    Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}/wheels"
    server.shutdown()
    server.server_close()


def add_wheel(folder: Path, name: str, version: str) -> str:
    """Add a wheel to a simple index and return its sha256."""
    place = folder / "wheels" / name
    place.mkdir(parents=True, exist_ok=True)
    make_wheel(place, name, {}, version=version)
    (wheel,) = place.glob("*.whl")
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    (place / "index.html").write_text(f'<a href="{wheel.name}#sha256={digest}">{wheel.name}</a>')
    return digest


def test_the_wheels_for_cpus_are_pinned_with_hashes_and_without_the_address_of_their_index(checkout: Path) -> None:
    (checkout / "requirements" / "cpu.txt").write_text("torch==9.1.0 \\\n    --hash=sha256:1\ntorch-other==8.2.0 \\\n")
    (checkout / "requirements" / "cpu-wheels.txt").write_text("torch==9.1.0+cpu\ntorchvision==8.2.0+cpu\n")  # of an earlier release
    digest = add_wheel(checkout / "index", "torch", "9.1.0+cpu")
    with simple_index(checkout / "index") as index:
        _, built = make_images("--cpu-wheels-index", index)
        pins = (checkout / "requirements" / "cpu-wheels.txt").read_text()
        assert re.findall(r"^[a-z].*==\S+", pins, re.MULTILINE) == ["torch==9.1.0+cpu"]
        assert re.findall(r"sha256:(\w+)", pins) == [digest]
        assert "http" not in pins + Path("images.lock.json").read_text()
        assert built == ["cpu-wheels", "gpu"]
        assert make_images("--cpu-wheels-index", index)[1] == []
        assert make_images()[1] == ["cpu", "gpu"]
        add_wheel(checkout / "index", "torch", "9.1.0+cpu")
        assert pin_cpu_wheels(index).read_text() == pins
        (checkout / "requirements" / "cpu.txt").write_text("torch==9.2.0\n")
        with pytest.raises(BadInput, match="cannot be used") as refused:
            pin_cpu_wheels(index)
        assert index not in str(refused.value)
        assert "\n" not in refused.value.message


def test_a_resolution_of_wheels_that_is_killed_can_be_repeated(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (checkout / "requirements" / "cpu.txt").write_text("torch==9.1.0\n")
    (checkout / "uv").write_text("#!/bin/sh\nkill -9 $$\n")
    (checkout / "uv").chmod(0o755)
    monkeypatch.setattr("pipeline.image_inputs.sysconfig.get_path", lambda name: str(checkout))
    with pytest.raises(TemporaryFailure, match="was ended by signal 9"):
        pin_cpu_wheels("http://127.0.0.1:9/")
    assert not (checkout / "requirements" / "cpu-wheels.txt").exists()


def test_the_digest_of_a_context_does_not_depend_on_its_place(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    other = tmp_path_factory.mktemp("other")
    for path in checkout.rglob("*"):
        if path.is_file() and path.parent.name != "bin":
            (other / path.relative_to(checkout)).parent.mkdir(parents=True, exist_ok=True)
            (other / path.relative_to(checkout)).write_bytes(path.read_bytes())
    assert context_sha256("base", root=other) == context_sha256("base", root=checkout)
    assert context_sha256("other base", root=other) != context_sha256("base", root=checkout)
