"""The webhook of promotions: whatever answers at its address, the promotion was made, and the command does not fail."""

import time
from contextlib import suppress

import pytest
from celebdit_testing.http_server import Handler, answering, serving

from components.registry.webhook import send

NO_HTTP = {
    "another protocol": b"SSH-2.0-OpenSSH_9.2\r\n",
    "the alert of a TLS server": b"\x15\x03\x01\x00\x02\x02\x46",
    "a status that is no number": b"HTTP/1.1 abc\r\n\r\n",
    "a header without end": b"HTTP/1.1 200 OK\r\nA: " + b"x" * 70_000 + b"\r\n\r\n",
    "too many headers": b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * 200 + b"\r\n",
    "a redirect to no address": b"HTTP/1.1 302 Found\r\nLocation: http://a b/\r\n\r\n",
    "nothing": b"",
}


@pytest.mark.parametrize("kind", NO_HTTP)
def test_an_answer_that_is_no_http_is_a_reason_and_no_error(kind: str) -> None:
    with answering() as server:
        server.answer_with(NO_HTTP[kind])
        assert str(send(f"{server.address}/hook", {"version": "1"})).startswith("it cannot be reached (")


def test_an_answer_byte_by_byte_delays_a_promotion_no_longer_than_none() -> None:
    class Dripping(Handler):
        def do_POST(self) -> None:  # noqa: N802
            with suppress(OSError):
                for _ in range(100):
                    self.wfile.write(b"H")
                    self.wfile.flush()
                    time.sleep(0.1)

    began_s = time.monotonic()
    with serving(Dripping) as address:
        assert send(f"{address}/hook", {"version": "1"}, timeout_s=0.5) == "it did not answer within 0.5 s"
        assert time.monotonic() - began_s < 3
