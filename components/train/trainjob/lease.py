"""Lease of a training on several nodes: the waiting step renews it in object storage, and the nodes check it.

Kubeflow's *Terminate* ends the step's pod before it can delete its TrainJob (KFP 2.17: gone within 0.3 s, no handler ran), and the
nodes would run for days. Promises: nodes whose lease expired stop by themselves, with a checkpoint; unavailable storage stops
no node. Keys are written once: each heartbeat is a new object, and the previous one is deleted.
"""

import os
import signal
import threading
import time
from collections.abc import Callable
from contextlib import suppress

from components.errors import BadInput, CelebditError
from components.storage import ObjectStore, StoreUri

HEARTBEAT_S = 60.0
TIMEOUT_S = 900.0


def _ended_key(home: StoreUri, attempt: str) -> StoreUri:
    # Sorts after every heartbeat: `renew` deletes what sorts before its own.
    return home / f"ended-{attempt}"


def mark_ended(store: ObjectStore, home: StoreUri, attempt: str) -> None:
    """Record that the TrainJob of `attempt` has ended; a failure of storage is ignored, the lease ends such a job later."""
    with suppress(CelebditError):
        store.put_bytes(_ended_key(home, attempt), b"ended")


def require_not_ended(store: ObjectStore, home: StoreUri, attempt: str) -> None:
    """Refuse to start a node of a TrainJob that has ended: JobSet's time to live deletes its JobSet, and Trainer may make a new one.

    Raises:
        BadInput: if it has ended. CelebditError: if storage is unavailable.
    """
    if store.exists(_ended_key(home, attempt)):
        raise BadInput(
            f"the TrainJob of attempt {attempt} has ended and was started again from outside",
            hint="delete it; the train step makes a new one when it is run again",
        )


class Lease:
    """The lease, as the waiting step renews it."""

    def __init__(self, store: ObjectStore, home: StoreUri, *, clock: Callable[[], float] = time.time) -> None:
        self._store = store
        self._home = home
        self._clock = clock
        self._renewed_s: float | None = None

    def renew(self) -> None:
        """Write a heartbeat, at most once in `HEARTBEAT_S`; if storage is unavailable, the next call tries again."""
        now = self._clock()
        if self._renewed_s is not None and now - self._renewed_s < HEARTBEAT_S:
            return
        self._renewed_s = now
        try:
            beat = self._home / f"beat-{now * 1000:.0f}"
            self._store.put_bytes(beat, b"waiting")
            for old in self._store.list(self._home):
                if old.uri.name < beat.name:  # not what `mark_ended` wrote
                    self._store.delete(old.uri)
        except CelebditError:
            return

    def mark_ended(self, attempt: str) -> None:
        """Record that the TrainJob of `attempt` has ended."""
        mark_ended(self._store, self._home, attempt)


class LeaseWatch:
    """Stops this process when the lease was not renewed for `timeout_s`."""

    def __init__(
        self,
        store: ObjectStore,
        home: StoreUri,
        *,
        timeout_s: float = TIMEOUT_S,
        every_s: float = HEARTBEAT_S,
        on_end: Callable[[], None] = lambda: os.kill(os.getpid(), signal.SIGTERM),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._home = home
        self._timeout_s = timeout_s
        self._every_s = every_s
        self._on_end = on_end
        self._clock = clock
        self._seen: frozenset[str] = frozenset()
        self._changed_s = clock()

    def start(self) -> None:
        """Watch in the background for as long as the process lives."""
        threading.Thread(target=self._watch, name="lease", daemon=True).start()

    def is_expired(self) -> bool:
        """Check once; the clocks of the two machines are never compared."""
        try:
            heartbeats = frozenset(item.uri.name for item in self._store.list(self._home))
        except CelebditError:
            self._changed_s = self._clock()
            return False
        if heartbeats != self._seen:
            self._seen, self._changed_s = heartbeats, self._clock()
        return self._clock() - self._changed_s > self._timeout_s

    def _watch(self) -> None:
        while not self.is_expired():
            time.sleep(self._every_s)
        self._on_end()
