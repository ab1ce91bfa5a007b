"""Key pairs that sign versions in tests."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat


@dataclass(frozen=True)
class Keys:
    """Files with the two halves of a key, in PEM."""

    private: Path
    public: Path


def write_keys(path: Path, key: Any = None) -> Keys:
    """Write a key, by default a new one, to `path` with the endings .pem and .pub."""
    key, keys = key or ec.generate_private_key(ec.SECP256R1()), Keys(path.with_suffix(".pem"), path.with_suffix(".pub"))
    keys.private.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    keys.public.write_bytes(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    return keys
