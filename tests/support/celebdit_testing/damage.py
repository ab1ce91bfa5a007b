"""Damage to stored objects: what a bad disk, a careless hand or a writer of the bucket does to one."""

from collections.abc import Callable

import pytest

from components.storage import ObjectStore, StoreUri


def flip(data: bytes) -> bytes:
    """Change one bit in the middle."""
    return data[: len(data) // 2] + bytes([data[len(data) // 2] ^ 1]) + data[len(data) // 2 + 1 :]


REPLACED: dict[str, Callable[[bytes], bytes]] = {
    "one bit": flip,
    "cut off": lambda data: data[: len(data) // 2],
    "empty": lambda data: b"",
}


def damage(store: ObjectStore, uri: StoreUri, kind: str, *, other: bytes = b"{}") -> None:
    """Damage the object at `uri`; `other` is a valid object of the same kind, for the kind "other"."""
    before = store.get_bytes(uri, max_bytes=2**30)
    if kind == "deleted":
        store.delete(uri)
        assert not store.exists(uri)
        return
    data = other if kind == "other" else REPLACED[kind](before)
    assert data != before
    store.put_bytes(uri, data)
    assert store.get_bytes(uri, max_bytes=2**30) == data


_RARE = ("cut off", "empty")
KINDS = tuple(
    pytest.param(kind, marks=[pytest.mark.fault, pytest.mark.slow]) if kind in _RARE else kind for kind in (*REPLACED, "deleted", "other")
)
"""Every kind; those that are read as another one is, by a size or a digest that does not fit, run with the slow tests alone."""


def contents(store: ObjectStore, prefix: StoreUri) -> dict[str, bytes]:
    """Return the bytes of everything below `prefix`, by key."""
    return {item.uri.relative_to(prefix): store.get_bytes(item.uri, max_bytes=2**30) for item in store.list(prefix)}
