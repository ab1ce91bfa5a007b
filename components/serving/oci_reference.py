"""Names of images in a registry: HOST[:PORT]/REPOSITORY[:TAG], and the login that tools for containers keep for a host."""

import ipaddress
import json
import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from components.command_settings import CommandSettings
from components.errors import BadInput, first_line, shorten

_REPOSITORY = re.compile(r"[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*(/[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*)*")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")
_HOST = re.compile(r"[A-Za-z0-9.-]+(:[0-9]{1,5})?|\[[0-9A-Fa-f:]+\](:[0-9]{1,5})?")
_MOST_CHARACTERS = 255
_DOCKER_HUB = "docker.io"
_EXAMPLE = "for example registry.example/team/faces:3"


@dataclass(frozen=True)
class ImageReference:
    """An image in a registry, by tag or by digest."""

    host: str
    repository: str
    reference: str
    """Tag or digest."""

    @classmethod
    def parse(cls, text: str, *, default_tag: str = "latest") -> "ImageReference":
        """Read a name, with or without `oci://` before it.

        Raises:
            BadInput: naming what is wrong with it.
        """
        name, shown = text.removeprefix("oci://"), repr(shorten(text))
        if "://" in name:
            raise BadInput(f"{shown} is an address, not the name of an image", hint=_EXAMPLE)
        host, _, rest = name.partition("/")
        if not rest or not _is_host(host):
            raise BadInput(f"{shown} does not begin with the host of a registry", hint=_EXAMPLE)
        path, at, digest = rest.partition("@")
        repository, colon, tag = path.partition(":")
        if not _REPOSITORY.fullmatch(repository) or len(repository) > _MOST_CHARACTERS:
            raise BadInput(
                f"the repository {shorten(repository)!r} of {shown} is not a name that registries take",
                hint=f"use at most {_MOST_CHARACTERS} lower case letters, digits and - _ . between them; {_EXAMPLE}",
            )
        if (colon and not _TAG.fullmatch(tag)) or (at and not re.fullmatch(r"sha256:[0-9a-f]{64}", digest)):
            raise BadInput(f"the tag or digest of {shown} is not one that registries take", hint=_EXAMPLE)
        if host == _DOCKER_HUB and "/" not in repository:
            repository = f"library/{repository}"  # Docker Hub's own images
        return cls(host, repository, digest or tag or default_tag)

    @property
    def is_digest(self) -> bool:
        return self.reference.startswith("sha256:")

    @property
    def base_url(self) -> str:
        """Address of the registry: TLS, except on this machine."""
        host = "registry-1.docker.io" if self.host == _DOCKER_HUB else self.host
        return f"{'http' if is_loopback(host) else 'https'}://{host}"

    def at(self, digest: str) -> str:
        """Return the name by which the image with this digest is pulled."""
        return f"{self.host}/{self.repository}@{digest}"

    def __str__(self) -> str:
        return f"{self.host}/{self.repository}{'@' if self.is_digest else ':'}{self.reference}"


def _is_host(text: str) -> bool:
    """Return whether `text` can be the host of a registry: a word alone is a folder on Docker Hub."""
    try:
        parts = urlsplit(f"//{text}")
        named = bool(_HOST.fullmatch(text)) and parts.port != 0
    except ValueError:  # of an address in brackets, or a port that is too large
        return False
    return named and ("." in text or ":" in text or text == "localhost")


def is_loopback(host: str) -> bool:
    """Return whether a host, with or without a port, is this machine."""
    try:
        name = urlsplit(f"//{host}").hostname or ""
        return name == "localhost" or ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


@dataclass(frozen=True)
class Login:
    """Name and password for a registry; they show in no representation."""

    user: str
    password: str

    def __repr__(self) -> str:
        return f"Login({self.user!r}, ...)"


def find_login(host: str, settings: CommandSettings) -> Login | None:
    """Return the login for a registry that podman, buildah, skopeo or docker stored, or None: the registry is asked without one.

    The first file that exists is read: REGISTRY_AUTH_FILE, podman's in XDG_RUNTIME_DIR, docker's in DOCKER_CONFIG or ~/.docker.

    Raises:
        BadInput: if the file cannot be read, or has another kind of login.
    """
    path = _login_file(settings)
    if path is None:
        return None
    from docker.auth import load_config  # noqa: PLC0415 - takes a quarter of a second
    from docker.errors import DockerException  # noqa: PLC0415

    again = f"log in again: podman login {host}"
    try:
        if not isinstance(json.loads(path.read_text()), dict):  # docker's module takes what is no JSON for an older format
            raise ValueError("it is not a JSON object")
        entry = load_config(str(path)).resolve_authconfig(host) or {}
    except (DockerException, OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise BadInput(f"the login for {host} cannot be read from {path}: {first_line(error)}", hint=again) from error
    if "IdentityToken" in entry:
        raise BadInput(f"the login for {host} in {path} is an identity token", hint=f"use a password or a token; {again}")
    user, password = (entry.get(key) or entry.get(key.title()) for key in ("username", "password"))
    return Login(user, password or "") if user else None


def _login_file(settings: CommandSettings) -> Path | None:
    named = settings.registry_auth_file
    if named is not None and not Path(named).is_file():
        raise BadInput(f"REGISTRY_AUTH_FILE {named} is not a file", hint="log in with: podman login --authfile FILE REGISTRY")
    podman = Path(settings.runtime_dir, "containers", "auth.json") if settings.runtime_dir else None
    docker = Path(settings.docker_config or Path.home() / ".docker", "config.json")
    return next((path for path in (Path(named) if named else None, podman, docker) if path is not None and path.is_file()), None)
