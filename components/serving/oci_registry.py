"""Client of a container registry: uploads images by the distribution API of the Open Container Initiative (1.1).

Promises: blobs that the registry has are not uploaded again; the tag appears last, when all that it names is there. An upload reads the
layer as a stream. Requests and logins are in `oci_requests.py`. oras-py, the published client, reads each layer into memory at once and
repeats refused logins for minutes.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import IO, Any
from urllib.parse import urlencode, urljoin, urlsplit

from components.errors import BadInput, first_line
from components.serving.oci_base import BaseImage, config_digest, digest_for_platform
from components.serving.oci_image import INDEX_TYPE, MANIFEST_TYPE, OciImage, blobs_of, digest_of
from components.serving.oci_reference import ImageReference, Login
from components.serving.oci_requests import RepositoryRequests, parse_json
from components.system.retry import RetryPolicy

_DOCKER_TYPES = ("application/vnd.docker.distribution.manifest.v2+json", "application/vnd.docker.distribution.manifest.list.v2+json")
_DAMAGED = "push the image again, or name another --base"


@dataclass
class ImageRegistry:
    """One repository of one registry."""

    reference: ImageReference
    login: Login | None
    policy: RetryPolicy = field(default_factory=lambda: RetryPolicy(deadline_s=60.0))

    def __post_init__(self) -> None:
        self._requests = RepositoryRequests(self.reference, self.login, self.policy)

    def push(self, image: OciImage) -> None:
        """Upload an image and give it the tag of the reference.

        Raises:
            BadInput: if the registry refuses it. TemporaryFailure: if the registry is unavailable or an upload broke.
        """
        with self._reading_answers():
            self._push(image)

    def _push(self, image: OciImage) -> None:
        for layer in image.base.layers if image.base else ():
            self._mount(layer["digest"], image.base.repository if image.base else "")
        for digest, file, size in blobs_of(image):
            if not self._has(digest):
                self._upload(digest, file, size)
        answer = self._requests.call(
            "PUT", f"manifests/{self.reference.reference}", (201,), image.manifest, {"Content-Type": MANIFEST_TYPE}
        )
        stored = answer.headers.get("Docker-Content-Digest", image.digest)
        if stored != image.digest:
            raise BadInput(f"{self.reference.host} stored {stored} instead of {image.digest}", hint="it changes manifests: use another")

    def base(self) -> BaseImage:
        """Return the image of the reference as a base: that of linux/amd64 where it has several.

        Raises:
            BadInput: if it does not exist, or has none for that platform.
        """
        with self._reading_answers():
            return self._base()

    def _base(self) -> BaseImage:
        name = str(self.reference)
        manifest = self._manifest(self.reference.reference)
        if "manifests" in manifest:
            manifest = self._manifest(digest_for_platform(manifest["manifests"], name))
        digest = config_digest(manifest, name)
        config = self._requests.call("GET", f"blobs/{digest}", (200,)).data
        if digest_of(config) != digest:
            raise BadInput(f"{self.reference.host} answers with another configuration than {digest}", hint=_DAMAGED)
        return BaseImage.of(self.reference.repository, manifest, parse_json(config), name=name)

    @contextmanager
    def _reading_answers(self) -> Iterator[None]:
        try:
            yield
        except (ValueError, KeyError, TypeError, AttributeError) as error:  # an address or JSON that is none, or without a field
            kind = type(error).__name__
            raise BadInput(
                f"{self.reference.host} does not answer as a container registry does ({kind}: {first_line(error)})",
                hint="check the host; it may be a login page or a proxy",
            ) from error

    def _manifest(self, reference: str) -> dict[str, Any]:
        accept = ", ".join((MANIFEST_TYPE, INDEX_TYPE, *_DOCKER_TYPES))
        data = self._requests.call("GET", f"manifests/{reference}", (200,), headers={"Accept": accept}).data
        if reference.startswith("sha256:") and digest_of(data) != reference:
            raise BadInput(f"{self.reference.host} answers with another manifest than {reference}", hint=_DAMAGED)
        return dict(parse_json(data))

    def _has(self, digest: str) -> bool:
        return self._requests.call("HEAD", f"blobs/{digest}", (200, 404)).status == 200

    def _mount(self, digest: str, repository: str) -> None:
        if self._has(digest):
            return
        query = urlencode({"mount": digest, "from": repository})
        if self._requests.call("POST", f"blobs/uploads/?{query}", (201, 202)).status != 201:
            raise BadInput(
                f"{self.reference.host} does not share layers between {repository} and {self.reference.repository}",
                hint=f"push the base to {self.reference.host}/{self.reference.repository} first, and name it there",
            )

    def _upload(self, digest: str, file: IO[bytes], size: int) -> None:
        def attempt() -> None:
            started = self._requests.call("POST", "blobs/uploads/", (202,), repeat=False)
            place = urljoin(self._requests.url("blobs/uploads/"), started.headers.get("Location", ""))
            joint = "&" if urlsplit(place).query else "?"
            file.seek(0)
            headers = {"Content-Type": "application/octet-stream", "Content-Length": str(size)}
            self._requests.call("PUT", f"{place}{joint}{urlencode({'digest': digest})}", (201,), file, headers, repeat=False)

        self._requests.insist(f"upload {digest[:19]}", attempt)
