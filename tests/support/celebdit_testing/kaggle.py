"""A loopback server that speaks the part of Kaggle's API that kagglehub uses to fetch a data set.

kagglehub's endpoint cannot be set, but its test environment is plain http and requests honours a proxy: the server is that proxy, so the
real kagglehub runs unchanged, from its credentials to its digest check.
"""

import base64
import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

from celebdit_testing.http_server import Handler, serving


@dataclass
class Kaggle:
    """The server's state: what it serves, and what it is to do wrong."""

    archive: bytes
    address: str = ""
    version: int = 3
    token: str | None = None
    cut_after_bytes: list[int] = field(default_factory=list)
    statuses: list[int] = field(default_factory=list)
    wrong_digests: int = 0
    gets: int = 0
    requests: list[str] = field(default_factory=list)
    ranges: list[str] = field(default_factory=list)

    @property
    def environment(self) -> dict[str, str]:
        """What makes kagglehub talk to this server."""
        return {
            "KAGGLE_API_ENVIRONMENT": "LOCALHOST",
            "HTTP_PROXY": self.address,
            "http_proxy": self.address,
            "NO_PROXY": "127.0.0.1",
            "no_proxy": "127.0.0.1",
        }


@contextmanager
def kaggle_server(archive: bytes) -> Iterator[Kaggle]:
    kaggle = Kaggle(archive)

    class KaggleHandler(Handler):
        protocol_version = "HTTP/1.0"  # a truncated download ends with its connection

        def do_POST(self) -> None:  # noqa: N802 - named by the base class
            body = json.loads(self.content())
            called = self.path.rsplit("/", 1)[-1]
            kaggle.requests.append(called)
            if kaggle.token is not None and self.headers.get("Authorization") != f"Bearer {kaggle.token}":
                self.answer(401, {"code": 401, "message": "Unauthenticated"})
            elif kaggle.statuses:
                self.answer(kaggle.statuses.pop(0), {"message": "not now"})
            elif (body["ownerSlug"], body["datasetSlug"]) != ("owner", "faces"):
                self.answer(404, {"code": 404, "message": "Not found"})
            elif called == "GetDataset":
                self.answer(200, {"currentVersionNumber": kaggle.version})
            else:
                assert body["datasetVersionNumber"] == kaggle.version
                self.send_response(302)
                self.send_header("Location", "http://storage.invalid/archive.zip")
                self.send_header("Content-Length", "0")
                self.end_headers()

        def do_GET(self) -> None:  # noqa: N802 - named by the base class
            data, start = kaggle.archive, 0
            if "Range" in self.headers:
                kaggle.ranges.append(self.headers["Range"])
                start = int(self.headers["Range"].removeprefix("bytes=").rstrip("-"))
            self.send_response(206 if start else 200)
            self.send_header("Accept-Ranges", "bytes")
            self.send_header("Content-Length", str(len(data) - start))
            digest = hashlib.md5(b"wrong" if kaggle.wrong_digests > 0 else data).digest()
            self.send_header("x-goog-hash", f"crc32c=AAAAAA==,md5={base64.b64encode(digest).decode()}")
            self.end_headers()
            if kaggle.wrong_digests > 0 and not start:
                kaggle.wrong_digests -= 1
            end = len(data)
            kaggle.gets += 1
            if kaggle.cut_after_bytes and (start or kaggle.gets == 1):
                end = min(end, start + kaggle.cut_after_bytes.pop(0))
            with suppress(ConnectionError):
                self.wfile.write(data[start:end])

    with serving(KaggleHandler) as kaggle.address:
        yield kaggle
