"""Bases of OCI images: what a registry answers is checked before it becomes a part of an image."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from celebdit_testing.http_server import answering
from celebdit_testing.image_registry import FakeImageRegistry, image_registry

from components.errors import BadInput, CelebditError, TemporaryFailure
from components.serving.oci_base import BaseImage
from components.serving.oci_image import INDEX_TYPE, MANIFEST_TYPE
from components.serving.oci_reference import ImageReference
from components.serving.oci_registry import ImageRegistry
from components.system.retry import RetryPolicy

ONCE = RetryPolicy(deadline_s=0.0)
LAYER = {"mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": "sha256:" + "b" * 64, "size": 7}
CONFIG: dict[str, Any] = {"architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": ["sha256:" + "d" * 64]}}
NO_IMAGE = "r.example/a:1 is no image of a container"


@pytest.fixture
def registry() -> Iterator[FakeImageRegistry]:
    with image_registry() as served:
        yield served


def base(layers: object, config: object) -> BaseImage:
    return BaseImage.of("a", {"layers": layers}, config, name="r.example/a:1")


@pytest.mark.parametrize("history", [{}, {"history": None}, {"history": [{"created_by": "sh"}]}])
def test_a_base_keeps_what_its_configuration_says(history: dict[str, Any]) -> None:
    described = CONFIG | {"config": {"Env": ["A=b"]}, "created": "2026"}
    image = base([LAYER | {"annotations": {"a": "b"}}], described | history)
    assert image.config == described | {"history": history.get("history") or []}
    assert image.layers == (LAYER | {"annotations": {"a": "b"}},)


@pytest.mark.parametrize(
    ("layers", "config", "words"),
    [
        ([LAYER], {}, NO_IMAGE),
        ([LAYER], [], NO_IMAGE),
        ([LAYER], None, NO_IMAGE),
        ([LAYER], 5, NO_IMAGE),
        ([LAYER], CONFIG | {"rootfs": None}, NO_IMAGE),
        ([LAYER], CONFIG | {"rootfs": {"diff_ids": "abc"}}, NO_IMAGE),
        ([LAYER], CONFIG | {"rootfs": {"diff_ids": ["latest"]}}, NO_IMAGE),
        ([LAYER], CONFIG | {"history": 5}, NO_IMAGE),
        ([LAYER, LAYER], CONFIG, "2 layers, but 1 in its configuration"),
        ([], CONFIG, "0 layers, but 1 in its configuration"),
        (None, CONFIG, NO_IMAGE),
        (["x"], CONFIG, NO_IMAGE),
        ([LAYER | {"digest": "../../../manifests/1"}], CONFIG, NO_IMAGE),
        ([LAYER | {"digest": LAYER["digest"] + "\n"}], CONFIG, NO_IMAGE),  # type: ignore[operator]
        ([LAYER | {"size": -1}], CONFIG, NO_IMAGE),
        ([LAYER | {"size": "7"}], CONFIG, NO_IMAGE),
        ([{key: value for key, value in LAYER.items() if key != "size"}], CONFIG, NO_IMAGE),
        ([LAYER], CONFIG | {"architecture": "arm64"}, "is for linux/arm64, not for linux/amd64"),
        ([LAYER], CONFIG | {"os": "windows"}, "is for windows/amd64, not for linux/amd64"),
    ],
)
def test_what_is_no_image_for_a_container_is_refused_as_a_base(layers: object, config: object, words: str) -> None:
    with pytest.raises(BadInput) as refused:
        base(layers, config)
    assert words in refused.value.message
    assert refused.value.hint
    assert "\n" not in refused.value.message


@pytest.mark.parametrize(
    ("manifest", "words"),
    [
        ({"manifests": [{"mediaType": "x", "digest": "1", "size": 1, "platform": {"os": "linux", "architecture": "amd64"}}]}, "digest"),
        ({"manifests": None}, "is no image of a container"),
        ({"manifests": [{"mediaType": "x", "digest": LAYER["digest"], "size": 1}]}, "has no image for linux/amd64"),
        ({"config": {"digest": "sha512:" + "a" * 128}, "layers": []}, "config.digest"),
        ({"schemaVersion": 1, "fsLayers": []}, "is no image of a container (config"),
        ([], "does not answer as a container registry|is no image of a container"),
        ("[" * 200_000, "nested too deeply"),
    ],
)
def test_a_manifest_that_names_no_image_is_refused(registry: FakeImageRegistry, manifest: object, words: str) -> None:
    content = manifest if isinstance(manifest, str) else json.dumps(manifest)
    registry.manifests["a", "1"] = (INDEX_TYPE if "manifests" in content else MANIFEST_TYPE, content.encode())
    with pytest.raises(BadInput) as refused:
        ImageRegistry(ImageReference.parse(f"{registry.host}/a:1"), None, ONCE).base()
    assert any(part in refused.value.message for part in words.split("|"))
    assert refused.value.hint


@pytest.mark.parametrize("kind", ["configuration", "manifest"])
def test_an_answer_with_another_digest_is_no_base(registry: FakeImageRegistry, kind: str) -> None:
    """The registry answers with other bytes under a digest, as one whose disk is broken does."""
    digest = registry.put("a", json.dumps(CONFIG).encode())
    content = json.dumps({"config": {"digest": digest}, "layers": [LAYER]}).encode()
    name = "sha256:" + "e" * 64 if kind == "manifest" else "1"
    registry.manifests["a", name] = (MANIFEST_TYPE, content)
    if kind == "configuration":
        registry.blobs["a", digest] += b" "
    reference = ImageReference.parse(f"{registry.host}/a{'@' if kind == 'manifest' else ':'}{name}")
    with pytest.raises(BadInput, match=f"answers with another {kind} than sha256:"):
        ImageRegistry(reference, None, ONCE).base()


@pytest.mark.parametrize(
    ("answer", "kind", "words"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{", TemporaryFailure, "is unavailable: .*IncompleteRead"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n{", TemporaryFailure, "is unavailable"),
        (b"HTTP/1.1 200 OK\r\n\r\n" + b" " * (5 * 2**20), BadInput, "answers GET with more than 4 MiB"),
        (b"HTTP/1.1 400 No\r\n\r\n" + b"[" * 200_000, BadInput, "HTTP 400.*no reason given"),
        (b"nonsense", TemporaryFailure, "is unavailable"),
    ],
)
def test_an_answer_that_is_cut_or_too_long_is_named(answer: bytes, kind: type[CelebditError], words: str) -> None:
    with answering() as server:
        server.answer_with(answer)
        reference = ImageReference.parse(f"{server.address.removeprefix('http://')}/a:1")
        with pytest.raises(kind, match=words) as refused:
            ImageRegistry(reference, None, ONCE).base()
    assert refused.value.hint
