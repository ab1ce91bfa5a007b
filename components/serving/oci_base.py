"""The image that a version is built on: what its registry answers, checked before it becomes a part of another image."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, TypeAdapter, ValidationError

from components.errors import BadInput

LAYER_TYPE = "application/vnd.oci.image.layer.v1.tar"
PLATFORM = {"architecture": "amd64", "os": "linux"}
_OCI_TYPES = {
    "application/vnd.docker.image.rootfs.diff.tar.gzip": f"{LAYER_TYPE}+gzip",
    "application/vnd.docker.image.rootfs.diff.tar": LAYER_TYPE,
}
_Digest = Annotated[str, StringConstraints(pattern=r"^sha256:[0-9a-f]{64}$")]


@dataclass(frozen=True)
class BaseImage:
    """The layers of an image that come before the model, as they are in the same registry."""

    repository: str
    layers: tuple[Mapping[str, Any], ...]
    """Descriptors of the manifest, compressed or not."""
    config: Mapping[str, Any]
    """Configuration of the image, which names the uncompressed layers and what the image is for."""

    @classmethod
    def of(cls, repository: str, manifest: Mapping[str, Any], config: object, *, name: str) -> "BaseImage":
        """Return the image with this manifest and configuration; `name` is what errors call it.

        Raises:
            BadInput: if it is no image of a container, or not for linux/amd64.
        """
        layers = _check(_LAYERS, manifest.get("layers"), name)
        parsed = _check(_CONFIG, config, name)
        if len(layers) != len(parsed.rootfs.diff_ids):
            raise _no_image(name, f"{len(layers)} layers, but {len(parsed.rootfs.diff_ids)} in its configuration")
        if {"architecture": parsed.architecture, "os": parsed.os} != PLATFORM:
            raise BadInput(f"{name} is for {parsed.os}/{parsed.architecture}, not for linux/amd64", hint="name another --base")
        described = [layer.model_dump() for layer in layers]
        # Docker's own types of layers are those of OCI under another name.
        typed = tuple({**layer, "mediaType": _OCI_TYPES.get(layer["mediaType"], layer["mediaType"])} for layer in described)
        return cls(repository, typed, parsed.model_dump(exclude_unset=True) | {"history": parsed.history or []})


def config_digest(manifest: Mapping[str, Any], name: str) -> str:
    """Return the digest of the configuration that a manifest names.

    Raises:
        BadInput: if it names none.
    """
    return str(_check(_CONFIG_OF, manifest, name).config.digest)


def digest_for_platform(manifests: object, name: str) -> str:
    """Return the digest of the image for linux/amd64 among `manifests`, the entries of an index.

    Raises:
        BadInput: if there is none.
    """
    for entry in _check(_ENTRIES, manifests, name):
        platform = entry.platform or {}
        if PLATFORM.items() <= platform.items():
            return str(entry.digest)
    raise BadInput(f"{name} has no image for linux/amd64", hint="name another --base")


class _Part(BaseModel):
    model_config = ConfigDict(extra="allow", strict=True)


class _Descriptor(_Part):
    mediaType: str  # noqa: N815 - named by the specification
    digest: _Digest
    size: int = Field(ge=0)


class _Entry(_Descriptor):
    platform: dict[str, Any] | None = None


class _ConfigDescriptor(_Part):
    digest: _Digest


class _ConfigOf(_Part):
    config: _ConfigDescriptor


class _RootFs(_Part):
    diff_ids: list[_Digest]


class _Config(_Part):
    architecture: str
    os: str
    rootfs: _RootFs
    history: list[dict[str, Any]] | None = None


_LAYERS: TypeAdapter[list[_Descriptor]] = TypeAdapter(list[_Descriptor])
_ENTRIES: TypeAdapter[list[_Entry]] = TypeAdapter(list[_Entry])
_CONFIG_OF: TypeAdapter[_ConfigOf] = TypeAdapter(_ConfigOf)
_CONFIG: TypeAdapter[_Config] = TypeAdapter(_Config)


def _check(kind: TypeAdapter[Any], content: object, name: str) -> Any:
    try:
        return kind.validate_python(content)
    except ValidationError as error:
        first = error.errors()[0]
        raise _no_image(name, f"{'.'.join(map(str, first['loc'])) or 'content'}: {first['msg']}") from error


def _no_image(name: str, reason: str) -> BadInput:
    return BadInput(
        f"{name} is no image of a container ({reason})",
        hint="name an image with a shell as --base, for example a copy of busybox in this registry",
    )
