"""Requests to a registry: passwords go to no other server than the registry and the token server that it names itself."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from celebdit_testing.http_server import Handler, answering, serving

from components.errors import BadInput
from components.serving.oci_image import OciImage, digest_of
from components.serving.oci_reference import ImageReference, Login
from components.serving.oci_registry import ImageRegistry
from components.system.retry import RetryPolicy

ONCE = RetryPolicy(deadline_s=0.0)
CHALLENGE = b'HTTP/1.1 401 No\r\nWWW-Authenticate: Bearer realm="%s/token"\r\nContent-Length: 0\r\nConnection: close\r\n\r\n'
TOKEN = b'HTTP/1.1 200 OK\r\nContent-Length: 14\r\nConnection: close\r\n\r\n{"token": "x"}'


@pytest.fixture
def image(tmp_path: Path) -> OciImage:
    (tmp_path / "layer.tar").write_bytes(b"layer")
    return OciImage(b"{}", b"{}", tmp_path / "layer.tar", digest_of(b"layer"))


@dataclass
class Storage:
    """Another server, where a registry keeps its blobs: it asks for the password, and names a server for tokens."""

    address: str = ""
    authorizations: list[str | None] = field(default_factory=list)
    """Of the requests for blobs."""
    token_requests: list[str] = field(default_factory=list)


@pytest.fixture
def storage() -> Iterator[Storage]:
    asked = Storage()

    class Blobs(Handler):
        def handle_any(self) -> None:
            self.content()
            asked.authorizations.append(self.headers.get("Authorization"))
            self.close_connection = True
            self.wfile.write(CHALLENGE % tokens.address.encode())

        do_GET = do_PUT = handle_any  # noqa: N815

    with answering() as tokens, serving(Blobs) as asked.address:
        tokens.answer_with(TOKEN)
        asked.token_requests = tokens.requests
        yield asked


def registry_of(storage: str) -> type[Handler]:
    """Return a registry that asks for a password and keeps its blobs in another server."""

    class Registry(Handler):
        def handle_any(self) -> None:
            self.content()
            if not self.headers.get("Authorization"):
                self.send_response(401)
                self.send_header("WWW-Authenticate", 'Basic realm="registry"')
                self.send_header("Content-Length", "0")
                return self.end_headers()
            if self.command == "HEAD":
                return self.answer(404)
            self.send_response(202 if self.command == "POST" else 307)
            self.send_header("Location", f"{storage}/blob")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return None

        do_GET = do_HEAD = do_POST = do_PUT = handle_any  # noqa: N815

    return Registry


def test_a_server_that_a_registry_sends_a_client_to_gets_no_password(image: OciImage, storage: Storage) -> None:
    with serving(registry_of(storage.address)) as url:
        reference = ImageReference.parse(f"{url.removeprefix('http://')}/team/faces:3")
        for call in ("push", "base"):
            registry = ImageRegistry(reference, Login("pusher", "canary"), ONCE)
            with pytest.raises(BadInput, match="HTTP 401"):
                registry.push(image) if call == "push" else registry.base()
    assert storage.authorizations == [None, None], "it was asked for a blob and for a manifest"
    assert not storage.token_requests


@pytest.mark.parametrize(
    ("location", "words"),
    [
        ("http://registry.invalid/blob", "sends this client to http://registry.invalid/blob, without TLS"),
        ("", "HTTP 307"),
        ("/v2/team/faces/manifests/3", "redirects without end"),
        ("http://[", "does not answer as a container registry does"),
    ],
)
def test_a_redirect_that_leads_nowhere_safe_is_refused(location: str, words: str, image: OciImage) -> None:
    with answering() as server:
        server.answer_with(f"HTTP/1.1 307 X\r\nLocation: {location}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".encode())
        reference = ImageReference.parse(f"{server.address.removeprefix('http://')}/team/faces:3")
        with pytest.raises(BadInput, match=words) as refused:
            ImageRegistry(reference, None, ONCE).base()
        assert refused.value.hint
        assert len(server.requests) <= 4


def test_an_upload_is_sent_nowhere_else_by_a_redirect(image: OciImage) -> None:
    """Where it goes is what the answer to its beginning says."""

    class Registry(Handler):
        def handle_any(self) -> None:
            self.content()
            self.send_response(404 if self.command == "HEAD" else 307)
            self.send_header("Location", f"{other.address}/blob")
            self.send_header("Content-Length", "0")
            self.end_headers()

        do_HEAD = do_POST = handle_any  # noqa: N815

    with answering() as other, serving(Registry) as url:
        other.answer_with(b"HTTP/1.1 202 Accepted\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        with pytest.raises(BadInput, match="HTTP 307"):
            ImageRegistry(ImageReference.parse(f"{url.removeprefix('http://')}/team/faces:3"), None, ONCE).push(image)
        assert not other.requests
