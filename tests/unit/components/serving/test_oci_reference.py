"""Names of images, and the logins that other programs stored for their registries."""

import base64
import json
from pathlib import Path

import pytest

from components.command_settings import CommandSettings
from components.errors import BadInput
from components.serving.oci_reference import ImageReference, Login, find_login


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("faces", "does not begin with the host"),
        ("team/faces:3", "does not begin with the host"),
        ("https://registry.example/faces", "is an address"),
        ("registry.example/Team/faces", "'Team/faces'"),
        ("registry.example/team//faces", "'team//faces'"),
        ("registry.example/", "does not begin with the host"),
        ("registry.example/faces:", "the tag or digest"),
        ("registry.example/faces:a b", "the tag or digest"),
        ("registry.example/faces@sha256:abc", "the tag or digest"),
        ("me:secret@registry.example/faces", "does not begin with the host"),
        ("registry.example:99999/faces", "does not begin with the host"),
        ("registry.example:0/faces", "does not begin with the host"),
        ("[:::]:5000/faces", "does not begin with the host"),
        ("registry.example/" + "a" * 256, "at most 255"),
        ("x" * 100_000, "does not begin with the host"),
        ("registry.example/" + "a-" * 50_000, "is not a name that registries take"),
    ],
)
def test_a_wrong_name_of_an_image_is_refused_before_anything_is_sent(text: str, words: str) -> None:
    with pytest.raises(BadInput) as refused:
        ImageReference.parse(text)
    assert words in f"{refused.value.message} {refused.value.hint}"
    assert len(refused.value.message) < 400


def settings(**environ: str) -> CommandSettings:
    return CommandSettings.from_environment(environ)


def test_the_login_is_the_one_that_podman_or_docker_stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    host = "registry.example:5000"
    assert find_login(host, settings()) is None

    def store(path: Path, user: str) -> str:
        path.parent.mkdir(parents=True, exist_ok=True)
        auth = base64.b64encode(f"{user}:pass:word".encode()).decode()
        path.write_text(json.dumps({"auths": {host: {"auth": auth}}}))
        return str(path)

    store(tmp_path / "home" / ".docker" / "config.json", "home")
    assert find_login(host, settings()) == Login("home", "pass:word")
    assert find_login("another.example", settings()) is None
    store(tmp_path / "docker" / "config.json", "docker")
    assert find_login(host, settings(DOCKER_CONFIG=str(tmp_path / "docker"))) == Login("docker", "pass:word")
    store(tmp_path / "run" / "containers" / "auth.json", "podman")
    assert find_login(host, settings(XDG_RUNTIME_DIR=str(tmp_path / "run"))) == Login("podman", "pass:word")
    named = store(tmp_path / "auth.json", "named")
    assert find_login(host, settings(REGISTRY_AUTH_FILE=named, XDG_RUNTIME_DIR=str(tmp_path / "run"))) == Login("named", "pass:word")
    assert "pass" not in repr(find_login(host, settings(REGISTRY_AUTH_FILE=named)))
    of_host = '{"auths": {"registry.example:5000": %s}}'
    for broken in ("{", "[]", "null", '"x"', "[" * 100_000, *(of_host % entry for entry in ('{"auth": "%%%"}', '{"auth": 5}', "[]"))):
        (tmp_path / "auth.json").write_text(broken)
        with pytest.raises(BadInput, match="cannot be read from"):
            find_login(host, settings(REGISTRY_AUTH_FILE=named))
    (tmp_path / "auth.json").write_text(of_host % '{"identitytoken": "canary"}')
    with pytest.raises(BadInput, match="is an identity token") as refused:
        find_login(host, settings(REGISTRY_AUTH_FILE=named))
    assert "canary" not in str(refused.value)
    with pytest.raises(BadInput, match="is not a file"):
        find_login(host, settings(REGISTRY_AUTH_FILE=str(tmp_path / "absent")))
