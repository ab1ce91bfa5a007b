"""Prints the log of a training's first node while the step waits.

Promises: an interrupted stream is resumed, each line once and in order; the rest is fetched when the pod has ended. The position is the
timestamp that Kubernetes puts before each line, so lines that were rotated out in between, or written while the node's clock was set back,
are lost. A log that cannot be read stops nothing.
"""

import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime

from components.errors import BadInput, CelebditError
from components.kube.client import Cluster
from components.train.trainjob.manifest import CONTAINER

_LAST_LINES_S = 10.0
_PAUSE_S = 0.2
_ENDED = ("Succeeded", "Failed")


@dataclass
class LogPosition:
    """Position in a log: the timestamp of the last line, and how many lines have that timestamp."""

    at: datetime | None = None
    lines: int = 0

    def unread(self, lines: Iterable[str], *, to_the_end: bool) -> Iterator[str]:
        """Yield the text of those `lines` that come after this position, and advance it.

        `lines` are a log from the second of `at` on, each with its timestamp. A line without a line feed is incomplete, unless the log is
        read `to_the_end`.
        """
        again, known = self.at, self.lines
        for line in lines:
            if not line.endswith("\n") and not to_the_end:
                return
            moment, text = _split_timestamp(line.removesuffix("\n"))
            if moment is not None:
                if again is not None and moment < again:
                    continue
                if moment == again and known:
                    known -= 1
                    continue
                self.lines = self.lines + 1 if moment == self.at else 1
                self.at = moment
            yield text


@dataclass
class _Log:
    position: LogPosition
    complete: bool = False


@dataclass(frozen=True)
class _Reader:
    log: _Log
    thread: threading.Thread


class LogStream:
    """Prints the log of the pods that `selector` matches, one after the other, in a thread of its own."""

    def __init__(
        self, cluster: Cluster, selector: str, *, write_line: Callable[[str], None] = lambda line: print(line, file=sys.stderr, flush=True)
    ) -> None:
        self._cluster = cluster
        self._selector = selector
        self._write_line = write_line
        self._reader: _Reader | None = None
        self._logs: dict[str, _Log] = {}
        self._closing = False

    def follow(self) -> None:
        """Print new lines in the background."""
        self._ensure_reader()

    def close(self) -> None:
        """Print the last lines; waits a few seconds for them."""
        self._closing = True
        end_s = time.monotonic() + _LAST_LINES_S
        with suppress(CelebditError):
            while (left_s := end_s - time.monotonic()) > 0 and (reader := self._ensure_reader()) is not None:
                reader.thread.join(left_s)
                if not reader.log.complete:
                    time.sleep(_PAUSE_S)

    def _ensure_reader(self) -> _Reader | None:
        """Return the running reader, started if necessary, or None if there is nothing to read."""
        if self._reader is not None and self._reader.thread.is_alive():
            return self._reader
        for pod in self._cluster.pods(self._selector):
            phase = pod.get("status", {}).get("phase")
            if phase != "Running" and phase not in _ENDED:
                continue
            log = self._logs.setdefault(str(pod["metadata"].get("uid")), _Log(LogPosition()))
            if not log.complete:
                options = {"to_the_end": phase in _ENDED or self._closing}
                thread = threading.Thread(target=self._print, args=(pod["metadata"]["name"], log), kwargs=options, name="log", daemon=True)
                self._reader = _Reader(log, thread)
                thread.start()
                return self._reader
        return None

    def _print(self, pod: str, log: _Log, *, to_the_end: bool) -> None:
        try:
            for line in log.position.unread(self._cluster.log(pod, CONTAINER, since=log.position.at), to_the_end=to_the_end):
                self._write_line(line)
            log.complete = to_the_end
        except BadInput:  # access is refused, and asking again changes nothing
            log.complete = True
        except CelebditError:  # interrupted: the next call resumes it
            return


def _split_timestamp(line: str) -> tuple[datetime | None, str]:
    """Split a line into timestamp and text; messages of a kubelet without a log have no timestamp."""
    stamp, _, text = line.partition(" ")
    try:
        return datetime.fromisoformat(stamp), text
    except ValueError:
        return None, line
