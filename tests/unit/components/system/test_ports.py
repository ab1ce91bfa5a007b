"""Ports of this machine, on real sockets."""

import socket
import sys
from pathlib import Path

import pytest
from celebdit_testing.http_server import Handler, serving

from components.system.ports import bindable_port, free_port, http_status, is_listening


def test_a_free_port_can_be_bound_and_nothing_listens_on_it() -> None:
    port = free_port()
    assert not is_listening(port)
    assert bindable_port(port) == port


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only there does a file name the ports of outgoing connections")
def test_a_free_port_is_none_that_an_outgoing_connection_could_take() -> None:
    """A server takes seconds to start, and a connection of another test may meanwhile have its port."""
    lowest = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    assert all(20_000 <= free_port() < lowest for _ in range(50))


@pytest.mark.parametrize("lowest", ["1024\t65535\n", "20010\t20020\n"])
def test_a_port_is_free_whatever_connections_may_take(lowest: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "range").write_text(lowest)
    monkeypatch.setattr("components.system.ports._OUTGOING_PORTS", tmp_path / "range")
    assert bindable_port(free_port())


def test_a_port_that_a_server_listens_on_cannot_be_bound() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert is_listening(port)
        with pytest.raises(OSError, match="in use"):
            bindable_port(port)


class Forbidden(Handler):
    def do_GET(self) -> None:  # noqa: N802
        self.answer(403)


def test_the_status_of_a_refusal_is_returned_and_silence_is_none() -> None:
    with serving(Forbidden) as url:
        assert http_status(url) == 403
    assert http_status(f"http://127.0.0.1:{free_port()}") is None
