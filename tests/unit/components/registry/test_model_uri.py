"""Addresses of model versions."""

import pytest

from components.registry.model_uri import ModelUri


@pytest.mark.parametrize("prefix", ["", "models:/"])
@pytest.mark.parametrize(
    ("text", "uri"),
    [
        ("faces@champion", ModelUri("faces", "champion")),
        ("faces/12", ModelUri("faces", "12")),
        ("faces", ModelUri("faces", None)),
        ("a.b-c_d@x-y", ModelUri("a.b-c_d", "x-y")),
    ],
)
def test_a_version_is_addressed_by_number_or_alias(prefix: str, text: str, uri: ModelUri) -> None:
    assert ModelUri.parse(prefix + text) == uri


@pytest.mark.parametrize(
    "text", ["", "models:/", "models:faces/1", "faces/latest", "faces@", "faces@a/1", ".faces", "a b@champion", "faces/1\n"]
)
def test_anything_else_is_no_address(text: str) -> None:
    assert ModelUri.parse(text) is None
