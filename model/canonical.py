"""Canonical JSON and the digest of it: equal values have equal bytes, on every machine."""

import hashlib
import json
from typing import Any

JsonObject = dict[str, Any]
"""A JSON object whose keys are decided elsewhere: what a run is identified by, facts beside a checkpoint."""


def canonical_json(value: object) -> bytes:
    """Encode `value` so that equal values have equal bytes: sorted keys, no spaces, no NaN."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False, ensure_ascii=False).encode()


def digest_of(value: object) -> str:
    """Return the sha256 of the canonical JSON of `value`."""
    return hashlib.sha256(canonical_json(value)).hexdigest()
