"""Flattens nested settings to one level of dotted names, for tables."""

from collections.abc import Iterator, Mapping


def flatten(values: Mapping[str, object]) -> dict[str, object]:
    """Return nested `values` as `outer.inner` -> value, in their order."""
    return dict(_items(values, ""))


def _items(values: Mapping[str, object], prefix: str) -> Iterator[tuple[str, object]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _items(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
