"""Addresses that are stored: keys relative to CELEBDIT_STORE, so that a store can be copied or moved.

Promises: pure. Releases up to 0.1 stored absolute addresses, `s3://bucket/prefix/runs/...`; `store_key` reads them as the key below the
store that they were written in, whatever that was called. `StoreLayout.locate` turns a key into a location of the present store.
"""

import re
from typing import Annotated

from pydantic import AfterValidator

_SEGMENT = r"[A-Za-z0-9][A-Za-z0-9._=@+-]*"
_RUN_FOLDERS = "checkpoints|snapshots|averages|samples|evaluations|attempts|journal|leases"
_ABSOLUTE = re.compile(rf"s3://.*/(?P<key>datasets/{_SEGMENT}/[0-9a-f]{{64}}(?:/.*)?|runs/[0-9a-f]{{16}}/(?:{_RUN_FOLDERS})(?:/.*)?)")
"""Of what was ever stored with an address: a dataset, or what a run has made. The prefix of a store may itself hold such names, so the
last place where a key can begin counts."""


def store_key(address: str) -> str:
    """Return the key below CELEBDIT_STORE that `address` means, which is such a key already, or absolute as older releases stored it.

    An absolute address that no release can have stored is returned as it is; `StoreLayout.locate` refuses it.
    """
    match = _ABSOLUTE.fullmatch(address)
    return match["key"] if match else address


StoreKey = Annotated[str, AfterValidator(store_key)]
"""A field of a manifest that holds such a key."""
