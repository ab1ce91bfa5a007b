"""A container registry for tests, on 127.0.0.1: the distribution API (1.1), strictly: whatever the specification forbids is refused.

Blobs have the digest that they are put under, a manifest names only blobs that are there with their sizes, and its content type is its own.
Logins are asked for as by real registries: by a password, or by tokens of a token server, which are good for one repository and action.
"""

import base64
import hashlib
import json
import re
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, Literal

from celebdit_testing.http_server import Handler, Refused, serving

NAME = r"[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*(\/[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*)*"
TAG = re.compile(r"[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}")
DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
ROUTE = re.compile(rf"/v2/(?P<name>{NAME})/(?P<kind>blobs/uploads|blobs|manifests)/(?P<rest>[^/]*)")
USER, PASSWORD = "pusher", "canary-registry-password-0123"


@dataclass
class FakeImageRegistry:
    auth: Literal["none", "basic", "token"] = "none"
    may_push: bool = True
    relative: bool = True
    """Whether the place of an upload is told without the address."""
    rewrites: bool = False
    """Whether manifests are stored in a form of its own, as by registries that convert images."""
    blobs: dict[tuple[str, str], bytes] = field(default_factory=dict)
    """(repository, digest) -> content."""
    manifests: dict[tuple[str, str], tuple[str, bytes]] = field(default_factory=dict)
    """(repository, tag or digest) -> content type and content."""
    uploads: dict[str, str] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    authorizations: list[str] = field(default_factory=list)
    faults: list[tuple[str, int | str]] = field(default_factory=list)
    """Beginnings of requests like "PUT /v2/", each answered once with a status or with "drop"."""
    url: str = ""

    @property
    def host(self) -> str:
        return self.url.removeprefix("http://")

    def count(self, beginning: str) -> int:
        return sum(request.startswith(beginning) for request in self.requests)

    def put(self, repository: str, content: bytes) -> str:
        digest = f"sha256:{hashlib.sha256(content).hexdigest()}"
        self.blobs[repository, digest] = content
        return digest

    def manifest(self, repository: str, reference: str) -> dict[str, Any]:
        return dict(json.loads(self.manifests[repository, reference][1]))


def coded(status: int, code: str, message: str = "by the specification") -> Refused:
    return Refused(status, json.dumps({"errors": [{"code": code, "message": message}]}))


def handler_of(registry: FakeImageRegistry) -> type[Handler]:
    class RegistryHandler(Handler):
        def handle_any(self) -> None:
            self.body = self.content()
            registry.requests.append(f"{self.command} {self.path}")
            registry.authorizations.append(self.headers.get("Authorization", ""))
            try:
                self.sabotage()
                if self.target == "/token":
                    return self.give_token()
                route = ROUTE.fullmatch(self.target)
                if route is None:
                    raise coded(404, "NAME_INVALID" if self.target.startswith("/v2/") else "UNSUPPORTED")
                self.check_login(route["name"])
                return self.carry_out(route["name"], route["kind"], route["rest"])
            except Refused as refused:
                return self.refuse(refused)

        do_GET = do_HEAD = do_POST = do_PUT = handle_any  # noqa: N815

        def sabotage(self) -> None:
            line = f"{self.command} {self.path}"
            fault = next((fault for fault in registry.faults if line.startswith(fault[0])), None)
            if fault is None:
                return
            registry.faults.remove(fault)
            if fault[1] == "drop":
                self.hang_up()
                raise Refused(0, "")
            raise coded(int(fault[1]), "UNKNOWN", "by order of the test")

        def refuse(self, refused: Refused) -> None:
            if not refused.status:
                return
            raw = b"" if self.command == "HEAD" else str(refused).encode()
            with suppress(OSError):
                self.send_response(refused.status)
                if refused.status == 401 and self.target != "/token":
                    self.send_header("WWW-Authenticate", self.challenge())
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(raw)))
                self.end_headers()
                self.wfile.write(raw)

        def action(self) -> str:
            return "pull" if self.command in ("GET", "HEAD") else "pull,push"

        def challenge(self) -> str:
            if registry.auth == "basic":
                return 'Basic realm="registry"'
            route = ROUTE.fullmatch(self.target)
            scope = f"repository:{route['name'] if route else ''}:{self.action()}"
            return f'Bearer realm="{registry.url}/token",service="registry",scope="{scope}"'

        def check_login(self, name: str) -> None:
            authorization = self.headers.get("Authorization", "")
            if registry.auth == "basic" and authorization != self.basic():
                raise coded(401, "UNAUTHORIZED", "authentication required")
            if registry.auth == "token":
                token = base64.b64decode(authorization.removeprefix("Bearer ")).decode() if authorization.startswith("Bearer ") else ""
                scope = token.partition(" ")[0]
                if not (scope.startswith(f"repository:{name}:") and scope.endswith(self.action()[-4:])):
                    raise coded(401, "UNAUTHORIZED", "authentication required")
            if self.action() != "pull" and not registry.may_push:
                raise coded(403, "DENIED", "requested access to the resource is denied")

        @staticmethod
        def basic() -> str:
            return "Basic " + base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()

        def give_token(self) -> None:
            if self.query.get("service") != "registry" or self.headers.get("Authorization") != self.basic():
                raise coded(401, "UNAUTHORIZED")
            self.answer(200, {"token": base64.b64encode(f"{self.query['scope']} {uuid.uuid4()}".encode()).decode()})

        def carry_out(self, name: str, kind: str, rest: str) -> None:
            if kind == "blobs/uploads":
                return self.upload(name, rest)
            if kind == "manifests":
                return self.put_manifest(name, rest) if self.command == "PUT" else self.get(registry.manifests.get((name, rest)))
            if self.command not in ("GET", "HEAD") or not DIGEST.fullmatch(rest):
                raise coded(400, "DIGEST_INVALID")
            blob = registry.blobs.get((name, rest))
            return self.get(None if blob is None else ("application/octet-stream", blob))

        def get(self, found: tuple[str, bytes] | None) -> None:
            if found is None:
                raise coded(404, "MANIFEST_UNKNOWN" if "manifests" in self.target else "BLOB_UNKNOWN", "unknown")
            self.reply(200, {"Content-Type": found[0], "Content-Length": str(len(found[1]))})
            if self.command == "GET":
                self.wfile.write(found[1])

        def upload(self, name: str, session: str) -> None:
            if self.command == "POST" and not session:
                if self.headers.get("Content-Length") != "0":
                    raise coded(400, "SIZE_INVALID", "the request that begins an upload has no body")
                source, digest = self.query.get("from", ""), self.query.get("mount", "")
                if (source, digest) in registry.blobs:
                    registry.blobs[name, digest] = registry.blobs[source, digest]
                    return self.reply(201, {"Location": f"/v2/{name}/blobs/{digest}", "Content-Length": "0"})
                place = uuid.uuid4().hex
                registry.uploads[place] = name
                where = f"/v2/{name}/blobs/uploads/{place}?state=x"
                return self.reply(202, {"Location": where if registry.relative else registry.url + where, "Content-Length": "0"})
            content = self.body
            if self.command != "PUT" or registry.uploads.pop(session, None) != name or self.query.get("state") != "x":
                raise coded(404, "BLOB_UPLOAD_UNKNOWN")
            if self.headers.get("Content-Type") != "application/octet-stream" or "Content-Length" not in self.headers:
                raise coded(400, "BLOB_UPLOAD_INVALID")
            digest = self.query.get("digest", "")
            if f"sha256:{hashlib.sha256(content).hexdigest()}" != digest:
                raise coded(400, "DIGEST_INVALID", "provided digest did not match uploaded content")
            registry.blobs[name, digest] = content
            return self.reply(201, {"Location": f"/v2/{name}/blobs/{digest}", "Content-Length": "0", "Docker-Content-Digest": digest})

        def put_manifest(self, name: str, reference: str) -> None:
            content = self.body
            manifest = json.loads(content)
            if not TAG.fullmatch(reference) or self.headers.get("Content-Type") != manifest["mediaType"] or manifest["schemaVersion"] != 2:
                raise coded(400, "MANIFEST_INVALID")
            for descriptor in [manifest["config"], *manifest["layers"]]:
                blob = registry.blobs.get((name, descriptor["digest"]))
                if blob is None:
                    raise coded(400, "MANIFEST_BLOB_UNKNOWN", descriptor["digest"])
                if len(blob) != descriptor["size"]:
                    raise coded(400, "SIZE_INVALID", descriptor["digest"])
            content = json.dumps(manifest, indent=2).encode() if registry.rewrites else content
            digest = f"sha256:{hashlib.sha256(content).hexdigest()}"
            for key in (reference, digest):
                registry.manifests[name, key] = (manifest["mediaType"], content)
            self.reply(201, {"Location": f"/v2/{name}/manifests/{digest}", "Content-Length": "0", "Docker-Content-Digest": digest})

        def reply(self, status: int, headers: dict[str, str]) -> None:
            self.send_response(status)
            for key, value in headers.items():
                self.send_header(key, value)
            self.end_headers()

    return RegistryHandler


@contextmanager
def image_registry(**options: Any) -> Iterator[FakeImageRegistry]:
    """Serve a registry until the block ends."""
    registry = FakeImageRegistry(**options)
    with serving(handler_of(registry)) as registry.url:
        yield registry
