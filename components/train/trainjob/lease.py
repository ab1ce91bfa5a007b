"""Whether somebody still waits for a training on several nodes: the waiting step says so in object storage, and the nodes look.

Kubeflow's *Terminate* ends the step's pod without letting it delete its TrainJob (KFP 2.17: gone within 0.3 s, no handler ran), and the
nodes would go on for days. Promises: nodes that nobody waits for stop by themselves, with a checkpoint; storage that cannot be asked stops
nobody. Keys are written once: each beat is a new object, and the one before is deleted.
"""

import os
import signal
import threading
import time
from collections.abc import Callable

from components.errors import CelebditError
from components.storage import ObjectStore, StoreUri

BEAT_S = 60.0
PATIENCE_S = 900.0


class Lease:
    """The word of the step that waits."""

    def __init__(self, store: ObjectStore, home: StoreUri, *, clock: Callable[[], float] = time.time) -> None:
        self._store = store
        self._home = home
        self._clock = clock
        self._said_s: float | None = None

    def renew(self) -> None:
        """Say that we are still here, at most once in `BEAT_S`; a storage that is away is asked again the next time."""
        now = self._clock()
        if self._said_s is not None and now - self._said_s < BEAT_S:
            return
        self._said_s = now
        try:
            beat = self._home / f"beat-{now * 1000:.0f}"
            self._store.put_bytes(beat, b"waiting")
            for old in self._store.list(self._home):
                if old.uri.name < beat.name:
                    self._store.delete(old.uri)
        except CelebditError:
            return


class LeaseWatch:
    """Asks this process to stop when nobody has waited for it for `patience_s`."""

    def __init__(
        self,
        store: ObjectStore,
        home: StoreUri,
        *,
        patience_s: float = PATIENCE_S,
        every_s: float = BEAT_S,
        on_end: Callable[[], None] = lambda: os.kill(os.getpid(), signal.SIGTERM),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._home = home
        self._patience_s = patience_s
        self._every_s = every_s
        self._on_end = on_end
        self._clock = clock
        self._seen: frozenset[str] = frozenset()
        self._changed_s = clock()

    def start(self) -> None:
        """Watch in the background for as long as the process lives."""
        threading.Thread(target=self._watch, name="lease", daemon=True).start()

    def expired(self) -> bool:
        """Look once; the clocks of the two machines are never compared."""
        try:
            found = frozenset(item.uri.name for item in self._store.list(self._home))
        except CelebditError:
            self._changed_s = self._clock()
            return False
        if found != self._seen:
            self._seen, self._changed_s = found, self._clock()
        return self._clock() - self._changed_s > self._patience_s

    def _watch(self) -> None:
        while not self.expired():
            time.sleep(self._every_s)
        self._on_end()
