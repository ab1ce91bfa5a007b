"""Connections to the embedded servers: made while their user holds the port, and refused when a stranger has taken it."""

import os
from collections.abc import Iterator

import boto3
import pytest
import requests
import urllib3
from botocore.config import Config
from botocore.exceptions import EndpointConnectionError
from celebdit_testing.strangers import STRANGERS_SERVER, bytes_received, start_stranger

from components.system.peers import OwnServers, guard
from components.system.ports import listen


@pytest.fixture(autouse=True)
def unguarded() -> Iterator[None]:
    connect = urllib3.connection.HTTPConnection._new_conn
    yield
    urllib3.connection.HTTPConnection._new_conn = connect  # type: ignore[method-assign]


def send_a_token(port: int) -> int:
    return requests.get(f"http://127.0.0.1:{port}/", headers={"Authorization": "Bearer secret"}, timeout=10).status_code


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
def test_a_stranger_who_takes_the_port_of_an_ended_server_hears_nothing(host: str) -> None:
    with listen() as ours:
        port = ours.getsockname()[1]
    with start_stranger(STRANGERS_SERVER, host, str(port)) as stranger:
        assert stranger.stdout is not None
        assert int(stranger.stdout.readline()) == port
        assert send_a_token(port) == 200, "an unguarded client is answered"
        guard(OwnServers.of_this_user(frozenset({port})))
        with pytest.raises(requests.ConnectionError, match="a process of another user answers"):
            send_a_token(port)
        store = boto3.client(
            "s3",
            endpoint_url=f"http://127.0.0.1:{port}",
            region_name="us-east-1",
            aws_access_key_id="a",
            aws_secret_access_key="b",
            config=Config(retries={"total_max_attempts": 1}),
        )
        with pytest.raises(EndpointConnectionError):
            store.list_buckets()
        num_bytes = bytes_received(stranger)
    assert 0 < num_bytes < 400, "it heard the first client alone"


def test_ports_of_other_servers_are_not_looked_at() -> None:
    with start_stranger(STRANGERS_SERVER, "127.0.0.1", "0") as stranger:
        assert stranger.stdout is not None
        port = int(stranger.stdout.readline())
        guard(OwnServers.of_this_user(frozenset({port + 1})))
        assert send_a_token(port) == 200
        stranger.communicate("\n")


def test_our_own_port_is_held_until_it_is_closed() -> None:
    with listen() as ours:
        port = ours.getsockname()[1]
        servers = OwnServers.of_this_user(frozenset({port}))
        assert servers.is_held(port)
        assert OwnServers.parse(str(servers)) == servers
        assert not OwnServers(os.geteuid() + 1, servers.user_namespace, servers.ports).is_held(port)
        assert OwnServers(os.geteuid() + 1, servers.user_namespace + 1, servers.ports).is_held(port), "in a container nothing can be said"
    assert not servers.is_held(port)


@pytest.mark.parametrize("text", ["", "abc", "1:2", "1:2:", "1:2:x", "1:2:3:4"])
def test_a_description_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r".*"):
        OwnServers.parse(text)
