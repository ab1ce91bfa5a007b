"""OCI images of versions: the same bytes for the same version, and a push that a strict registry accepts once and for all."""

import hashlib
import json
import os
import resource
import tarfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import pytest
from celebdit_testing.http_server import answering
from celebdit_testing.image_registry import PASSWORD, USER, FakeImageRegistry, image_registry

from components.errors import BadInput, CelebditError, DataRefused, TemporaryFailure
from components.registry.version_files import ModelFiles
from components.registry.version_manifest import MANIFEST_FILE, VersionManifest, check_folder
from components.serving.oci_base import BaseImage
from components.serving.oci_image import OciImage, digest_of, write_image, write_layout
from components.serving.oci_reference import ImageReference, Login
from components.serving.oci_registry import ImageRegistry
from components.system.retry import RetryPolicy

FILES = {
    "README.md": b"a card\n",
    "artifacts/weights.safetensors": bytes(range(256)) * 400,
    "artifacts/description.json": b"{}",
    "code/model/__init__.py": b"",
    "code/model/größe " + "x" * 120 + ".py": b"1\n",
    "MLmodel": b"flavors: {}\n",
}
ANNOTATIONS = {"org.opencontainers.image.version": "3"}
LOGIN = Login(USER, PASSWORD)
ONCE = RetryPolicy(deadline_s=0.0)
QUICK = RetryPolicy(deadline_s=5.0, first_pause_s=0.01, longest_pause_s=0.02)


def version(folder: Path, names: list[str]) -> ModelFiles:
    for number, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(FILES[name])
        (folder / name).chmod([0o600, 0o755, 0o444][number % 3])
        os.utime(folder / name, (number * 1000, number * 1000))
    manifest = VersionManifest.of_folder(folder, checkpoint_digest="c", ema="0.1")
    (folder / MANIFEST_FILE).write_bytes(manifest.to_bytes())
    return ModelFiles(folder, folder / "artifacts" / "weights.safetensors", cast(Any, None), manifest.digest)


@pytest.fixture
def image(tmp_path: Path) -> OciImage:
    return write_image(version(tmp_path / "version", list(FILES)), tmp_path / "layer.tar", ANNOTATIONS)


@pytest.fixture(params=["none", "basic", "token"])
def registry(request: pytest.FixtureRequest) -> Iterator[FakeImageRegistry]:
    with image_registry(auth=request.param, relative=request.param != "basic") as served:
        yield served


@pytest.fixture
def plain() -> Iterator[FakeImageRegistry]:
    with image_registry() as served:
        yield served


def client(
    registry: FakeImageRegistry, login: Login | None = LOGIN, policy: RetryPolicy = QUICK, name: str = "team/faces:3"
) -> ImageRegistry:
    return ImageRegistry(ImageReference.parse(f"{registry.host}/{name}"), login, policy)


def unpack(layer: bytes, folder: Path) -> Path:
    folder.mkdir()
    (folder / "layer.tar").write_bytes(layer)
    with tarfile.open(folder / "layer.tar") as archive:
        archive.extractall(folder, filter="data")
    return folder / "models"


def test_the_same_version_gives_the_same_digest_wherever_and_whenever_it_was_written(tmp_path: Path, image: OciImage) -> None:
    again = write_image(version(tmp_path / "other", list(FILES)[::-1]), tmp_path / "other.tar", ANNOTATIONS)
    assert (again.digest, again.layer_digest) == (image.digest, image.layer_digest)
    with tarfile.open(image.layer) as archive:
        entries = archive.getmembers()
    assert {entry.name for entry in entries if entry.isfile()} == {f"models/{name}" for name in [*FILES, MANIFEST_FILE]}
    facts = {(entry.mtime, entry.uid, entry.gid, entry.uname, entry.gname, entry.mode) for entry in entries}
    assert facts == {(0, 0, 0, "", "", 0o644), (0, 0, 0, "", "", 0o755)}
    assert [entry.name for entry in entries if entry.isdir()] == ["models", "models/artifacts", "models/code", "models/code/model"]


@pytest.mark.parametrize("name", ["artifacts/weights.safetensors", "code/model/__init__.py", MANIFEST_FILE])
def test_a_file_that_was_changed_after_the_check_is_not_packaged(tmp_path: Path, name: str) -> None:
    files = version(tmp_path / "version", list(FILES))
    path = files.folder / name
    path.chmod(0o644)
    path.write_bytes(path.read_bytes() + b" ")
    with pytest.raises(DataRefused, match="not the"):
        write_image(files, tmp_path / "layer.tar", ANNOTATIONS)


@pytest.mark.parametrize("name", ["artifacts/weights.safetensors", MANIFEST_FILE])
def test_a_file_that_was_deleted_after_the_check_is_named(tmp_path: Path, name: str) -> None:
    files = version(tmp_path / "version", list(FILES))
    (files.folder / name).unlink()
    with pytest.raises(DataRefused, match=f"'{name}' in .* cannot be read: No such file"):
        write_image(files, tmp_path / "layer.tar", ANNOTATIONS)


def test_a_layout_holds_what_its_index_names(tmp_path: Path, image: OciImage) -> None:
    layout = tmp_path / "layout"
    assert write_layout(image, layout, tag="3")
    assert json.loads((layout / "oci-layout").read_bytes()) == {"imageLayoutVersion": "1.0.0"}
    (entry,) = json.loads((layout / "index.json").read_bytes())["manifests"]
    blobs = {f"sha256:{path.name}": path.read_bytes() for path in (layout / "blobs" / "sha256").iterdir()}
    assert all(digest_of(content) == digest for digest, content in blobs.items())
    manifest = json.loads(blobs[entry["digest"]])
    assert set(blobs) == {entry["digest"], manifest["config"]["digest"], *(layer["digest"] for layer in manifest["layers"])}
    config = json.loads(blobs[manifest["config"]["digest"]])
    assert config["rootfs"] == {"type": "layers", "diff_ids": [image.layer_digest]}
    assert entry["annotations"] == {"org.opencontainers.image.ref.name": "3"}
    assert not write_layout(image, layout, tag="3"), "it holds that already, and the command may go on to push"
    with pytest.raises(BadInput, match="is not an empty folder"):
        write_layout(image, layout, tag="4")
    next((layout / "blobs" / "sha256").iterdir()).write_bytes(b"damaged")
    with pytest.raises(BadInput, match="is not an empty folder"):
        write_layout(image, layout, tag="3")
    (tmp_path / "file").touch()
    with pytest.raises(BadInput, match="cannot be written: Not a directory"):
        write_layout(image, tmp_path / "file" / "layout", tag="3")


@pytest.mark.parametrize("exists", [False, True])
def test_a_layout_that_finds_no_room_leaves_nothing_and_can_be_written_again(tmp_path: Path, image: OciImage, exists: bool) -> None:
    layout = tmp_path / "layout"
    if exists:
        layout.mkdir()
    with files_of_at_most(image.size_bytes // 2), pytest.raises(BadInput, match="cannot be written: File too large"):
        write_layout(image, layout, tag="3")
    assert layout.exists() == exists
    assert not exists or not list(layout.iterdir())
    write_layout(image, layout, tag="3")
    assert (layout / "index.json").exists()


@contextmanager
def files_of_at_most(size_bytes: int) -> Iterator[None]:
    """Let this process write no larger files: the kernel refuses, as on a disk that is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_the_second_of_two_that_write_a_layout_at_once_leaves_that_of_the_first(tmp_path: Path, image: OciImage) -> None:
    """The second looked into the folder before the first had written anything."""
    layout = tmp_path / "layout"
    write_layout(image, layout, tag="3")
    before = sorted(layout.rglob("*"))
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Path, "iterdir", lambda self: iter(()))
        with pytest.raises(BadInput, match="cannot be written: File exists"):
            write_layout(image, layout, tag="4")
    assert sorted(layout.rglob("*")) == before


def test_a_folder_that_cannot_be_is_named_by_its_beginning(tmp_path: Path, image: OciImage) -> None:
    with pytest.raises(BadInput, match="cannot be written: File name too long") as refused:
        write_layout(image, tmp_path / ("x" * 5000), tag="3")
    assert len(str(refused.value)) < 300


def test_what_is_pulled_again_is_the_version_bit_for_bit(tmp_path: Path, image: OciImage, registry: FakeImageRegistry) -> None:
    client(registry).push(image)
    manifest = registry.manifest("team/faces", "3")
    assert digest_of(registry.manifests["team/faces", image.digest][1]) == image.digest
    assert manifest["annotations"] == ANNOTATIONS
    (layer,) = manifest["layers"]
    models = unpack(registry.blobs["team/faces", layer["digest"]], tmp_path / "pulled")
    assert {path.relative_to(models).as_posix(): path.read_bytes() for path in models.rglob("*") if path.is_file()} == {
        **FILES,
        MANIFEST_FILE: (tmp_path / "version" / MANIFEST_FILE).read_bytes(),
    }
    check_folder(models, hashlib.sha256((models / MANIFEST_FILE).read_bytes()).hexdigest())
    assert registry.requests[-1].startswith("PUT /v2/team/faces/manifests/3"), "the tag comes when all is there"
    uploads = registry.count("POST")
    client(registry).push(image)
    assert registry.count("POST") == uploads, "what is there is not uploaded again"


@pytest.mark.parametrize("registry", ["basic", "token"], indirect=True)
@pytest.mark.parametrize("login", [None, Login(USER, "wrong")])
def test_a_registry_that_asks_for_a_login_is_named_with_what_to_type(
    registry: FakeImageRegistry, image: OciImage, login: Login | None
) -> None:
    with pytest.raises(BadInput, match=r"HTTP 401") as refused:
        client(registry, login).push(image)
    assert f"podman login {registry.host}" in str(refused.value.hint)
    assert ("user pusher" if login else "a request without a login") in refused.value.message
    assert not registry.blobs
    assert len(registry.requests) < 6, "a refused password is not tried again and again"


def test_a_user_who_may_not_push_is_told_so(plain: FakeImageRegistry, image: OciImage) -> None:
    plain.may_push = False
    with pytest.raises(BadInput, match=r"does not allow user pusher to use team/faces \(HTTP 403\): DENIED requested access"):
        client(plain).push(image)


@pytest.mark.parametrize(
    ("request_line", "fault"),
    [("HEAD", 500), ("POST", 503), ("POST", "drop"), ("PUT /v2/team/faces/blobs", "drop"), ("PUT /v2/team/faces/blobs", 502),
     ("PUT /v2/team/faces/manifests", 429), ("PUT /v2/team/faces/manifests", "drop")],
)  # fmt: skip
def test_a_passing_failure_ends_no_push(plain: FakeImageRegistry, image: OciImage, request_line: str, fault: int | str) -> None:
    plain.faults.append((request_line, fault))
    client(plain).push(image)
    assert not plain.faults
    assert ("team/faces", "3") in plain.manifests


@pytest.mark.parametrize(
    ("request_line", "fault", "kind", "words"),
    [("POST", 503, TemporaryFailure, "HTTP 503"), ("POST", "drop", TemporaryFailure, "is unavailable"),
     ("POST", 404, BadInput, "has no blobs/uploads/ in team/faces"), ("PUT /v2/team/faces/blobs", 400, BadInput, "HTTP 400"),
     ("PUT /v2/team/faces/manifests", 413, BadInput, "by order of the test")],
)  # fmt: skip
def test_a_push_that_fails_sets_no_tag(
    plain: FakeImageRegistry, image: OciImage, request_line: str, fault: int | str, kind: type[CelebditError], words: str
) -> None:
    plain.faults.append((request_line, fault))
    with pytest.raises(kind, match=words):
        client(plain, policy=ONCE).push(image)
    assert not plain.manifests


def test_a_token_that_ends_during_an_upload_is_fetched_again(image: OciImage) -> None:
    with image_registry(auth="token") as registry:
        registry.faults.append(("PUT /v2/team/faces/blobs", 401))
        client(registry, policy=ONCE).push(image)
        assert not registry.faults
        assert registry.blobs["team/faces", image.layer_digest] == image.layer.read_bytes()


def test_a_registry_that_stores_another_manifest_than_was_pushed_is_named(plain: FakeImageRegistry, image: OciImage) -> None:
    plain.rewrites = True
    with pytest.raises(BadInput, match=f"stored sha256:.* instead of {image.digest}") as refused:
        client(plain).push(image)
    assert refused.value.hint
    assert image.digest not in {digest for _, digest in plain.manifests}


def test_a_layer_that_changes_between_attempts_is_found_by_the_registry(plain: FakeImageRegistry, image: OciImage) -> None:
    with image.layer.open("r+b") as file:
        file.seek(2000)
        file.write(b"?")
    with pytest.raises(BadInput, match="DIGEST_INVALID"):
        client(plain, policy=ONCE).push(image)
    assert not plain.manifests


def test_a_server_that_is_not_there_is_a_temporary_failure(image: OciImage) -> None:
    with pytest.raises(TemporaryFailure, match="is unavailable"):
        ImageRegistry(ImageReference.parse("127.0.0.1:9/a/b:1"), None, ONCE).push(image)


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 6\r\nConnection: close\r\n\r\n<html>",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}",
        b'HTTP/1.1 401 No\r\nWWW-Authenticate: Bearer realm="http://["\r\nContent-Length: 0\r\nConnection: close\r\n\r\n',
    ],
)
def test_a_server_that_is_no_registry_is_named(answer: bytes, image: OciImage) -> None:
    with answering() as server:
        server.answer_with(answer)
        reference = ImageReference.parse(f"{server.address.removeprefix('http://')}/team/faces:3")
        for call in (ImageRegistry(reference, LOGIN, ONCE).base, lambda: ImageRegistry(reference, LOGIN, ONCE).push(image)):
            with pytest.raises(BadInput, match=r"does not answer as a container registry|is no image of a container|HTTP 200|HTTP 401"):
                call()


def base_image(registry: FakeImageRegistry, repository: str) -> tuple[str, str]:
    """Put an index with an image of two platforms; returns the layer of the one for amd64 and the index's digest."""
    layer = registry.put(repository, b"a shell")
    config = {
        "architecture": "amd64",
        "os": "linux",
        "config": {"User": "1000"},
        "rootfs": {"type": "layers", "diff_ids": ["sha256:" + "d" * 64]},
    }
    kind = "application/vnd.docker.distribution.manifest.v2+json"
    raw = json.dumps(config).encode()
    manifest = {
        "schemaVersion": 2,
        "mediaType": kind,
        "config": {"mediaType": "x", "digest": registry.put(repository, raw), "size": len(raw)},
        "layers": [{"mediaType": "application/vnd.docker.image.rootfs.diff.tar.gzip", "digest": layer, "size": 7}],
    }
    content = json.dumps(manifest).encode()
    registry.manifests[repository, digest_of(content)] = (kind, content)
    entries = [
        {"mediaType": kind, "digest": "sha256:" + "e" * 64, "size": 1, "platform": {"os": "linux", "architecture": "arm64"}},
        {"mediaType": kind, "digest": digest_of(content), "size": len(content), "platform": {"os": "linux", "architecture": "amd64"}},
    ]
    index = json.dumps({"schemaVersion": 2, "manifests": entries}).encode()
    registry.manifests[repository, digest_of(index)] = ("application/vnd.oci.image.index.v1+json", index)
    return layer, digest_of(index)


def test_an_image_on_a_base_has_its_layers_first_and_uploads_none_of_them(tmp_path: Path, registry: FakeImageRegistry) -> None:
    layer, index = base_image(registry, "team/tools")
    base = client(registry, name=f"team/tools@{index}").base()
    image = write_image(version(tmp_path / "version", list(FILES)), tmp_path / "layer.tar", ANNOTATIONS, base)
    client(registry).push(image)
    manifest = registry.manifest("team/faces", "3")
    assert [(entry["digest"], entry["mediaType"].rpartition(".")[2]) for entry in manifest["layers"]] == [
        (layer, "tar+gzip"),
        (image.layer_digest, "tar"),
    ]
    config = json.loads(registry.blobs["team/faces", manifest["config"]["digest"]])
    assert config["config"] == {"User": "1000"}
    assert config["rootfs"]["diff_ids"] == ["sha256:" + "d" * 64, image.layer_digest]
    assert registry.count("PUT /v2/team/faces/blobs/uploads") == 2, "the version's layer and the configuration"


def test_a_base_whose_layers_the_registry_does_not_share_is_refused(plain: FakeImageRegistry, tmp_path: Path) -> None:
    base = BaseImage("team/other", ({"mediaType": "x", "digest": "sha256:" + "9" * 64, "size": 1},), {"rootfs": {"diff_ids": []}})
    image = write_image(version(tmp_path / "version", list(FILES)), tmp_path / "layer.tar", ANNOTATIONS, base)
    with pytest.raises(BadInput, match="does not share layers between team/other and team/faces"):
        client(plain).push(image)
    with pytest.raises(BadInput, match=r"has no manifests/none in team/other"):
        client(plain, name="team/other:none").base()


def test_passwords_are_sent_by_tls_alone(plain: FakeImageRegistry, image: OciImage, monkeypatch: pytest.MonkeyPatch) -> None:
    """A registry elsewhere is asked by TLS; the test's server does not speak it."""
    assert ImageReference.parse("registry.example/a:1").base_url == "https://registry.example"
    assert ImageReference.parse("docker.io/team/a").base_url == "https://registry-1.docker.io"
    assert [ImageReference.parse(f"docker.io/{name}").repository for name in ("busybox:1", "team/a")] == ["library/busybox", "team/a"]
    for host in ("localhost:5000", "127.0.0.1:5000", "[::1]:5000"):
        assert ImageReference.parse(f"{host}/a").base_url == f"http://{host}"
    monkeypatch.setattr(ImageReference, "base_url", property(lambda self: f"https://{self.host}"))
    with pytest.raises(BadInput, match="cannot be trusted"):
        client(plain, policy=ONCE).push(image)
    monkeypatch.setattr(ImageReference, "base_url", property(lambda self: f"http://{self.host}"))
    with pytest.raises(BadInput, match="without TLS"):
        ImageRegistry(ImageReference.parse("registry.example/a:1"), LOGIN, ONCE).push(image)
    assert not any(plain.authorizations)


def test_two_pushes_at_once_both_succeed(plain: FakeImageRegistry, image: OciImage) -> None:
    errors: list[BaseException] = []

    def push() -> None:
        try:
            client(plain).push(image)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=push) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert not errors
    assert ("team/faces", "3") in plain.manifests
