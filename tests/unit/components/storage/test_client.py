"""Clients of object storage: what they share and what each has of its own."""

import pytest

from components.storage import connect


def test_clients_share_the_descriptions_of_services_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading them takes ten times as long as the rest of a client."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "first-key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    first = connect("http://127.0.0.1:9").client
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "second-key")
    second = connect("http://127.0.0.1:10").client
    assert second._loader is first._loader
    keys = [client._get_credentials().get_frozen_credentials().access_key for client in (first, second)]
    assert keys == ["first-key", "second-key"]
    assert (first.meta.endpoint_url, second.meta.endpoint_url) == ("http://127.0.0.1:9", "http://127.0.0.1:10")
