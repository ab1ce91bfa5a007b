"""The log of a training's first node, printed here while the step waits.

Promises: a stream that breaks off is picked up where it was, each line once and in order; the rest is fetched when the pod has ended. Where
it was is told by the time that Kubernetes puts before each line, so what a node has rotated away meanwhile, or said while its clock was
turned back, is lost. A log that cannot be read stops nothing.
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
    """How far a log is read: the time of the last line, and how many lines of that very time."""

    at: datetime | None = None
    lines: int = 0

    def unread(self, lines: Iterable[str], *, to_the_end: bool) -> Iterator[str]:
        """Yield the text of those `lines` that come after this position, which follows them.

        `lines` are a log from the second of `at` on, each with its time before it. One without its line feed was cut off, unless the log is
        read `to_the_end`.
        """
        again, known = self.at, self.lines
        for line in lines:
            if not line.endswith("\n") and not to_the_end:
                return
            moment, text = _parted(line.removesuffix("\n"))
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
        self, cluster: Cluster, selector: str, *, say: Callable[[str], None] = lambda line: print(line, file=sys.stderr, flush=True)
    ) -> None:
        self._cluster = cluster
        self._selector = selector
        self._say = say
        self._reader: _Reader | None = None
        self._logs: dict[str, _Log] = {}
        self._closing = False

    def follow(self) -> None:
        """Have what is not printed yet printed in the background."""
        self._reading()

    def close(self) -> None:
        """Let the last lines come, for a few seconds."""
        self._closing = True
        end_s = time.monotonic() + _LAST_LINES_S
        with suppress(CelebditError):
            while (left_s := end_s - time.monotonic()) > 0 and (reader := self._reading()) is not None:
                reader.thread.join(left_s)
                if not reader.log.complete:
                    time.sleep(_PAUSE_S)

    def _reading(self) -> _Reader | None:
        """Return who reads, begun if need be, or None if there is nothing to read."""
        if self._reader is not None and self._reader.thread.is_alive():
            return self._reader
        for pod in self._cluster.pods(self._selector):
            phase = pod.get("status", {}).get("phase")
            if phase != "Running" and phase not in _ENDED:
                continue
            log = self._logs.setdefault(str(pod["metadata"].get("uid")), _Log(LogPosition()))
            if not log.complete:
                how = {"to_the_end": phase in _ENDED or self._closing}
                thread = threading.Thread(target=self._print, args=(pod["metadata"]["name"], log), kwargs=how, name="log", daemon=True)
                self._reader = _Reader(log, thread)
                thread.start()
                return self._reader
        return None

    def _print(self, pod: str, log: _Log, *, to_the_end: bool) -> None:
        try:
            for line in log.position.unread(self._cluster.log(pod, CONTAINER, since=log.position.at), to_the_end=to_the_end):
                self._say(line)
            log.complete = to_the_end
        except BadInput:  # we may not read it, and asking again changes nothing
            log.complete = True
        except CelebditError:  # it broke off: the next look goes on with it
            return


def _parted(line: str) -> tuple[datetime | None, str]:
    """Part a line from the time before it; the words of a kubelet that has no log have none."""
    stamp, _, text = line.partition(" ")
    try:
        return datetime.fromisoformat(stamp), text
    except ValueError:
        return None, line
