"""Connections of the server of a version: one that asks for nothing is closed, so that idle ones cannot take every place.

Uvicorn (0.54) waits for ever for the first request of a connection, and for the rest of one whose first byte came.
"""

import asyncio

from uvicorn.protocols.http.h11_impl import H11Protocol

REQUEST_S = 10.0
"""How long the head of a request may take, from the connection or the answer before it."""


class PromptConnection(H11Protocol):
    """An HTTP/1.1 connection on which the head of each request arrives within `REQUEST_S`."""

    _deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for the first request."""
        super().connection_made(transport)
        self._await_request()

    def on_response_complete(self) -> None:
        """Begin to wait for the next request, unless the client has sent it already."""
        answered = self.cycle
        super().on_response_complete()
        if self.cycle is answered:
            self._await_request()

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait no longer."""
        self._cancel()
        super().connection_lost(exc)

    def _await_request(self) -> None:
        self._cancel()
        self._deadline = self.loop.call_later(REQUEST_S, self._close_if_idle, self.cycle)

    def _close_if_idle(self, answered: object) -> None:
        if self.cycle is answered:
            self.transport.close()

    def _cancel(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
