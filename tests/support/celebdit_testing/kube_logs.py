"""Logs of pods as a Kubernetes API server streams them: until the pod ends, with times, from a second on, broken off by order."""

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Literal

from celebdit_testing.http_server import Handler, Refused

_KNOWN = {"container", "follow", "timestamps", "sinceTime"}


@dataclass(frozen=True)
class Break:
    """A stream ends in the middle of the line after `after_lines`: "cut" as a lost connection, "end" as if that were all."""

    after_lines: int
    kind: Literal["cut", "end"] = "cut"


@dataclass
class PodLogs:
    lines: dict[str, list[tuple[datetime, str]]] = field(default_factory=dict)
    breaks: list[Break] = field(default_factory=list)
    """Each for one stream, in order; what is left has not happened."""
    streams: list[dict[str, str]] = field(default_factory=list)
    _read_bytes: dict[str, int] = field(default_factory=dict)
    _now: datetime = datetime(2026, 1, 1, tzinfo=UTC)

    def add_lines(self, pod: str, *texts: str, every_s: float = 0.3, line_feed: str = "\n") -> None:
        """Add lines, `every_s` apart."""
        for text in texts:
            self._now += timedelta(seconds=every_s)
            self.lines.setdefault(pod, []).append((self._now, text + line_feed))

    def take_in(self, pod: str, file: Path, *, to_the_end: bool = False) -> None:
        """Add what is new in a file: complete lines, or all that is left of it."""
        raw = file.read_bytes()[self._read_bytes.get(pod, 0) :]
        raw = raw if to_the_end else raw[: raw.rfind(b"\n") + 1]
        self._read_bytes[pod] = self._read_bytes.get(pod, 0) + len(raw)
        for line in raw.decode(errors="replace").splitlines(keepends=True):
            self.lines.setdefault(pod, []).append((datetime.now(UTC), line))

    def send(self, handler: Handler, pod: str, query: dict[str, str], ended: Callable[[], bool]) -> None:
        """Answer a request for the log of `pod`."""
        if unknown := set(query) - _KNOWN:
            raise Refused(400, f"the test server knows no {sorted(unknown)}")
        since = datetime.min.replace(tzinfo=UTC)
        if "sinceTime" in query:
            since = datetime.strptime(query["sinceTime"], "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)
        self.streams.append(query)
        handler.send_response(200)
        handler.send_header("Content-Type", "text/plain")
        handler.send_header("Transfer-Encoding", "chunked")
        handler.end_headers()
        with suppress(OSError):
            self._stream(handler, pod, query, since, ended)

    def _stream(self, handler: Handler, pod: str, query: dict[str, str], since: datetime, ended: Callable[[], bool]) -> None:
        read = num_sent = 0
        while True:
            last_look = ended() or query.get("follow") != "true"
            for moment, text in self.lines.get(pod, [])[read:]:
                read += 1
                if moment < since:
                    continue
                line = f"{moment:%Y-%m-%dT%H:%M:%S.%f}000Z {text}" if query.get("timestamps") == "true" else text
                if self.breaks and self.breaks[0].after_lines == num_sent:
                    chunk(handler, line[: len(line) - len(text) // 2 - 1])
                    return handler.hang_up() if self.breaks.pop(0).kind == "cut" else chunk(handler, "")
                chunk(handler, line)
                num_sent += 1
            if last_look:
                return chunk(handler, "")
            time.sleep(0.02)


def chunk(handler: Handler, text: str) -> None:
    raw = text.encode()
    handler.wfile.write(b"%x\r\n%b\r\n" % (len(raw), raw))
    handler.wfile.flush()
