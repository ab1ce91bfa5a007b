"""Signatures of versions by offline keys: made and verified with the package model-signing (OpenSSF), kept beside the versions' records.

Promises: a signature covers every file of a version, its manifest included, in the format of `model_signing sign key`; no service is asked.
A signature is looked up by the key that must have made it, so that several people can sign one version. The package is in the extra
`signing` and is imported only where a key is used.
"""

import base64
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from components.errors import BadInput, DataRefused, first_line, shorten
from components.registry.version_files import ModelFiles
from components.registry.version_records import VersionRecords
from components.reports.listing import list_some

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey

_CURVES = ("secp256r1", "secp384r1", "secp521r1")
_MAKE = "openssl ecparam -name prime256v1 -genkey -noout -out key.pem && openssl ec -in key.pem -pubout -out key.pub"
_MOST_BYTES = 64 * 1024


@dataclass(frozen=True)
class SigningKey:
    """A key in a file, private or public, and the id of its public half."""

    file: Path
    id: str
    pem: bytes = field(repr=False)
    """Its content, which is read once: the file may be a pipe from a program that decrypts it."""


@dataclass(frozen=True)
class SignedVersion:
    """What `models sign` did."""

    key_id: str
    manifest_sha256: str
    is_new: bool


class VersionSignatures:
    """The signatures beside the records of one store."""

    def __init__(self, records: VersionRecords) -> None:
        self._records = records

    def private_key(self, file: Path) -> SigningKey:
        """Return the key in a PEM file that can sign.

        Raises:
            BadInput: if it cannot be read, is not of a supported kind, or the package is not installed.
        """
        _require_package()
        from cryptography.hazmat.primitives.serialization import load_pem_private_key  # noqa: PLC0415

        data = _read_key(file)
        try:
            key = load_pem_private_key(data, None)
        except TypeError as error:
            raise BadInput(f"the key {file} has a password", hint="decrypt it first: openssl ec -in FILE -out key.pem") from error
        except ValueError as error:
            raise BadInput(f"{file} is not a private key in PEM", hint=f"make one: {_MAKE}") from error
        return SigningKey(file, _id_of(_elliptic(key.public_key(), file)), data)

    def public_key(self, file: Path) -> SigningKey:
        """Return the key in a PEM file that versions are verified with.

        Raises:
            BadInput: if it cannot be read, is not of a supported kind, or the package is not installed.
        """
        _require_package()
        from cryptography.hazmat.primitives.serialization import load_pem_public_key  # noqa: PLC0415

        data = _read_key(file)
        try:
            key = load_pem_public_key(data)
        except ValueError as error:
            raise BadInput(f"{file} is not a public key in PEM", hint=f"make it from the private key: {_MAKE}") from error
        return SigningKey(file, _id_of(_elliptic(key, file)), data)

    def sign(self, files: ModelFiles, key: SigningKey, what: str) -> SignedVersion:
        """Sign a version's files, unless the same key has; `what` names the version in errors.

        Raises:
            BadInput: if the version has no manifest.
        """
        digest = files.manifest_sha256
        if digest is None:
            raise BadInput(
                f"{what} was registered before versions had manifests", hint="register its checkpoint again, and sign that version"
            )
        from model_signing import signing  # noqa: PLC0415

        if self._records.signature(digest, key.id) is not None and self._problem(files, key, _public_half(key)) is None:
            return SignedVersion(key.id, digest, is_new=False)
        with tempfile.TemporaryDirectory() as scratch, _as_file(key) as private_key:
            target = Path(scratch, "signature")
            signing.Config().use_elliptic_key_signer(private_key=private_key).sign(files.folder, target)
            self._records.put_signature(digest, key.id, target.read_bytes())
        return SignedVersion(key.id, digest, is_new=True)

    def check(self, files: ModelFiles, key: SigningKey, what: str) -> None:
        """Verify the signature of a version by `key`; `what` names the version in errors.

        Raises:
            DataRefused: if it is missing or does not fit.
        """
        asks = f"the public key {key.file} is set in CELEBDIT_VERIFY_KEY"
        if files.manifest_sha256 is None:
            raise DataRefused(f"{what} was registered before versions could be signed, and {asks}", hint="register its checkpoint again")
        problem = self._problem(files, key, key.pem)
        if problem is not None:
            raise DataRefused(
                f"{what} {problem}, and {asks}",
                hint="sign it with the private key: celebdit models sign VERSION --model NAME --key FILE",
            )

    def _problem(self, files: ModelFiles, key: SigningKey, public_pem: bytes) -> str | None:
        from model_signing import verifying  # noqa: PLC0415

        digest = str(files.manifest_sha256)
        signature = self._records.signature(digest, key.id)
        if signature is None:
            others = self._records.signing_keys(digest)
            return f"is signed by other keys only ({list_some(others)}; this is {key.id})" if others else "is not signed"
        with tempfile.TemporaryDirectory() as scratch:
            stored, public = Path(scratch, "signature"), Path(scratch, "key.pub")
            stored.write_bytes(signature)
            public.write_bytes(public_pem)
            try:
                verifying.Config().use_elliptic_key_verifier(public_key=public).verify(files.folder, stored)
            except Exception as error:  # of the package, protobuf, base64, JSON or cryptography, by what was changed
                return f"has a signature of {key.id} that does not fit: {first_line(error)}"
        unsigned = sorted(_files_in(files.folder) - _signed_files(signature))
        return f"has a signature of {key.id} that does not cover {unsigned[0]!r} ({len(unsigned)} files)" if unsigned else None


def _files_in(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir()}


def _signed_files(signature: bytes) -> set[str]:
    """Return the names of the files that a verified signature covers: the package lets a signer leave out files."""
    statement = json.loads(base64.b64decode(json.loads(signature)["dsseEnvelope"]["payload"]))
    return {resource["name"] for resource in statement["predicate"]["resources"]}


@contextmanager
def _as_file(key: SigningKey) -> Iterator[Path]:
    """Yield a file with the private key that can be read more than once: in memory, or where that is not possible the key's own."""
    if not hasattr(os, "memfd_create"):
        yield key.file
        return
    number = os.memfd_create("key")
    try:
        os.write(number, key.pem)
        yield Path(f"/proc/self/fd/{number}")
    finally:
        os.close(number)


def _public_half(key: SigningKey) -> bytes:
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key  # noqa: PLC0415

    public = load_pem_private_key(key.pem, None).public_key()
    return public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def _require_package() -> None:
    try:
        import model_signing  # noqa: F401, PLC0415
    except ImportError as error:
        raise BadInput("signatures need the package model-signing", hint="install it: make signing") from error


def _read_key(file: Path) -> bytes:
    try:
        with file.open("rb") as opened:
            data = opened.read(_MOST_BYTES + 1)  # not by its size: a device or a pipe has none
    except OSError as error:
        shown = shorten(str(file))
        raise BadInput(f"the key {shown} cannot be read: {error.strerror}", hint="check --key or CELEBDIT_VERIFY_KEY") from error
    return data if len(data) <= _MOST_BYTES else b""


def _elliptic(key: object, file: Path) -> "EllipticCurvePublicKey":
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey  # noqa: PLC0415

    if not isinstance(key, EllipticCurvePublicKey) or key.curve.name not in _CURVES:
        raise BadInput(f"the key {file} is not one of the curves {', '.join(_CURVES)}", hint=f"make one: {_MAKE}")
    return key


def _id_of(key: "EllipticCurvePublicKey") -> str:
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat  # noqa: PLC0415

    return hashlib.sha256(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).hexdigest()[:16]
