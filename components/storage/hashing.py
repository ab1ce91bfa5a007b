"""Digests of what moves: sha256 is a thing's identity, MD5 only what S3 servers check an upload against.

Promises: pure functions of bytes; a file is hashed in constant memory.
"""

import base64
import hashlib
from pathlib import Path


def file_sha256(path: Path) -> str:
    """Return the sha256 of a file's bytes, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def content_md5(data: bytes) -> str:
    """Return the value of the Content-MD5 header for `data`; it protects the transport and is no identity."""
    return base64.b64encode(hashlib.md5(data, usedforsecurity=False).digest()).decode()
