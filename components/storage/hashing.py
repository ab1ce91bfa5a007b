"""Digests: sha256 identifies content; MD5 is only what S3 servers check an upload against.

Promises: pure functions of bytes; a file is hashed in constant memory.
"""

import base64
import hashlib
from collections.abc import Iterable
from pathlib import Path


def file_sha256(path: Path) -> str:
    """Return the sha256 of a file's bytes, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def content_md5(chunks: Iterable[bytes]) -> str:
    """Return the value of the Content-MD5 header for the bytes in `chunks`; it protects the transfer and identifies nothing."""
    md5 = hashlib.md5(usedforsecurity=False)
    for chunk in chunks:
        md5.update(chunk)
    return base64.b64encode(md5.digest()).decode()
