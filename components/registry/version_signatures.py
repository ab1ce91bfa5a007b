"""Signatures of versions by offline keys: made and verified with the package model-signing (OpenSSF), kept beside the versions' records.

Promises: a signature covers every file of a version, its manifest included, in the format of `model_signing sign key`; no service is asked.
A signature is looked up by the key that must have made it, so that several people can sign one version. The package is in the extra
`signing` and is imported only where a key is used.
"""

import hashlib
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from components.errors import BadInput, DataRefused, first_line
from components.registry.version_files import ModelFiles
from components.registry.version_records import VersionRecords

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
        return SigningKey(file, _id_of(_elliptic(key.public_key(), file)))

    def public_key(self, file: Path) -> SigningKey:
        """Return the key in a PEM file that versions are verified with.

        Raises:
            BadInput: if it cannot be read, is not of a supported kind, or the package is not installed.
        """
        _require_package()
        from cryptography.hazmat.primitives.serialization import load_pem_public_key  # noqa: PLC0415

        try:
            key = load_pem_public_key(_read_key(file))
        except ValueError as error:
            raise BadInput(f"{file} is not a public key in PEM", hint=f"make it from the private key: {_MAKE}") from error
        return SigningKey(file, _id_of(_elliptic(key, file)))

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
        with tempfile.TemporaryDirectory() as scratch:
            target = Path(scratch, "signature")
            signing.Config().use_elliptic_key_signer(private_key=key.file).sign(files.folder, target)
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
        problem = self._problem(files, key, key.file.read_bytes())
        if problem is not None:
            raise DataRefused(f"{what} {problem}, and {asks}", hint="sign it with the private key: celebdit models sign VERSION --key FILE")

    def _problem(self, files: ModelFiles, key: SigningKey, public_pem: bytes) -> str | None:
        from model_signing import verifying  # noqa: PLC0415

        digest = str(files.manifest_sha256)
        signature = self._records.signature(digest, key.id)
        if signature is None:
            others = self._records.signing_keys(digest)
            return f"is signed by other keys only ({', '.join(others)}; this is {key.id})" if others else "is not signed"
        with tempfile.TemporaryDirectory() as scratch:
            stored, public = Path(scratch, "signature"), Path(scratch, "key.pub")
            stored.write_bytes(signature)
            public.write_bytes(public_pem)
            try:
                verifying.Config().use_elliptic_key_verifier(public_key=public).verify(files.folder, stored)
            except Exception as error:  # of the package, protobuf, base64, JSON or cryptography, by what was changed
                return f"has a signature of {key.id} that does not fit: {first_line(error)}"
        return None


def _public_half(key: SigningKey) -> bytes:
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key  # noqa: PLC0415

    public = load_pem_private_key(key.file.read_bytes(), None).public_key()
    return public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def _require_package() -> None:
    try:
        import model_signing  # noqa: F401, PLC0415
    except ImportError as error:
        raise BadInput("signatures need the package model-signing", hint="install it: make signing") from error


def _read_key(file: Path) -> bytes:
    try:
        data = file.read_bytes() if file.stat().st_size <= _MOST_BYTES else b""
    except OSError as error:
        raise BadInput(f"the key {file} cannot be read: {error.strerror}", hint="check --key or CELEBDIT_VERIFY_KEY") from error
    return data


def _elliptic(key: object, file: Path) -> "EllipticCurvePublicKey":
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey  # noqa: PLC0415

    if not isinstance(key, EllipticCurvePublicKey) or key.curve.name not in _CURVES:
        raise BadInput(f"the key {file} is not one of the curves {', '.join(_CURVES)}", hint=f"make one: {_MAKE}")
    return key


def _id_of(key: "EllipticCurvePublicKey") -> str:
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat  # noqa: PLC0415

    return hashlib.sha256(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).hexdigest()[:16]
