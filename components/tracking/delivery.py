"""Background upload of a training's journal to MLflow, while the training continues.

Promises: an outage of MLflow never reaches the training; uploads are retried with growing pauses until the training ends.
"""

import logging
import threading
from collections.abc import Callable

from components.errors import BadInput, first_line
from components.tracking.journal import Destination, Journal

_MAX_PAUSE_S = 30.0
_log = logging.getLogger("components.tracking.journal")  # log lines name the journal that is uploaded


class Delivery:
    """A background thread that uploads a journal as it grows."""

    def __init__(
        self, journal: Journal, connect: Callable[[], Destination], *, on_outage: Callable[[Exception], None], every_s: float = 2.0
    ) -> None:
        self._journal = journal
        self._connect = connect
        self._on_outage = on_outage
        self._every_s = every_s
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="journal-delivery", daemon=True)
        self._destination: Destination | None = None
        self._outage: bool | None = None
        """Of an outage, whether a refusal was among its errors: waiting does not help then, so it is reported too."""
        self._is_complete = False
        self._thread.start()

    def _run(self) -> None:
        pause_s, attempt = self._every_s, 0
        while not self._stop.wait(pause_s):
            error = self._try()
            attempt = 0 if error is None else attempt + 1
            pause_s = self._every_s if error is None else min(pause_s * 2, _MAX_PAUSE_S)
            if error is not None:
                text = "upload to MLflow failed, attempt %d: %s; next attempt in %.0f s, until training ends"
                _log.warning(text, attempt, first_line(error), pause_s, extra={"topic": "upload to MLflow", "is_noted": True})
        self._is_complete = self._try() is None

    def _try(self) -> Exception | None:
        try:
            if self._destination is None:
                self._destination = self._connect()
            self._journal.deliver(self._destination)
        except Exception as error:  # MLflow's client raises many types: training must continue, and the entries stay in the journal
            is_refusal = isinstance(error, BadInput)
            if self._outage is None or (is_refusal and not self._outage):
                self._on_outage(error)
            self._outage = is_refusal or self._outage is True
            return error
        self._outage = None
        return None

    def close(self, *, within_s: float) -> bool:
        """Upload the rest, end the thread and return whether everything was uploaded within `within_s` seconds.

        Other entries stay in the journal. A request that hangs is left to the thread, which ends with the process.
        """
        self._stop.set()
        self._thread.join(within_s)
        return self._is_complete
