"""A loopback server that speaks the part of the Hugging Face hub's API that huggingface-hub uses to read a dataset."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from celebdit_testing.http_server import Handler, serving

NAME = "owner/celeba-faces"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Hub:
    """The server's state: what it serves, and what it is to do wrong."""

    files: dict[str, bytes]
    address: str = ""
    token: str | None = None
    gated: bool = False
    statuses: list[int] = field(default_factory=list)
    corrupt: set[str] = field(default_factory=set)
    downloads: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)


def _entry(name: str, data: bytes) -> dict[str, object]:
    """A file as the hub lists it: large and binary ones with their sha256, small texts with git's digest."""
    blob = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
    entry: dict[str, object] = {"type": "file", "path": name, "size": len(data), "oid": blob}
    if not name.endswith((".md", ".txt", ".jpg")):
        entry["lfs"] = {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 130}
    return entry


@contextmanager
def hub_server(files: dict[str, bytes]) -> Iterator[Hub]:
    hub = Hub(files)

    class HubHandler(Handler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:  # noqa: N802 - named by the base class
            self._serve(with_body=False)

        def do_GET(self) -> None:  # noqa: N802 - named by the base class
            self._serve(with_body=True)

        def _serve(self, *, with_body: bool) -> None:
            path = unquote(urlsplit(self.path).path)
            hub.requests.append(f"{self.command} {path}")
            api, resolve = f"/api/datasets/{NAME}", f"/datasets/{NAME}/resolve/{COMMIT}/"
            name = path.removeprefix(resolve)
            if hub.statuses:
                self._refuse(hub.statuses.pop(0), "")
            elif hub.token is not None and self.headers.get("Authorization") != f"Bearer {hub.token}":
                self._refuse(401, "GatedRepo" if hub.gated else "RepoNotFound")
            elif path in (api, *(f"{api}/revision/{revision}" for revision in ("main", "v1", COMMIT))):
                self.answer(200, {"id": NAME, "sha": COMMIT, "siblings": [], "tags": [], "private": False})
            elif path.startswith(f"{api}/tree/{COMMIT}"):
                self.answer(200, [_entry(name, data) for name, data in hub.files.items()])
            elif name != path and name in hub.files:
                self._send(name, with_body=with_body)
            else:
                self._refuse(404, "RevisionNotFound" if path.startswith(f"{api}/revision/") else "RepoNotFound")

        def _send(self, name: str, *, with_body: bool) -> None:
            data = hub.files[name]
            digest = str(_entry(name, data).get("lfs", {}).get("oid") or _entry(name, data)["oid"])  # type: ignore[attr-defined]
            self.send_response(200)
            for header, value in {"ETag": f'"{digest}"', "X-Repo-Commit": COMMIT, "Content-Length": str(len(data))}.items():
                self.send_header(header, value)
            self.end_headers()
            if with_body:
                hub.downloads.append(name)
                self.wfile.write(bytes(len(data)) if name in hub.corrupt else data)

        def _refuse(self, status: int, code: str) -> None:
            self.send_response(status)
            self.send_header("X-Error-Code", code)
            self.send_header("X-Error-Message", "refused by the test server")
            self.send_header("Content-Length", "0")
            self.end_headers()

    with serving(HubHandler) as hub.address:
        yield hub


@contextmanager
def using_hub(files: dict[str, bytes], home: Path) -> Iterator[Hub]:
    """A hub with these files that huggingface-hub uses, without credentials, for the block."""
    with hub_server(files) as server, pytest.MonkeyPatch.context() as patch:
        for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
            patch.delenv(name, raising=False)
        for name, value in {"HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1", "HF_ENDPOINT": server.address}.items():
            patch.setenv(name, value)
        yield server
