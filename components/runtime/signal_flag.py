"""Record a request to stop, instead of ending at once, so that a step can end its children and say why it stopped."""

import signal
import threading
import time
from types import FrameType


class SignalFlag:
    """Record SIGTERM, SIGINT and SIGHUP instead of ending, while the block runs in the main thread; an ignored SIGHUP stays ignored."""

    received = False
    received_s: float | None = None
    """When the first signal came, by the clock of `time.time`."""

    def __enter__(self) -> "SignalFlag":
        self._main = threading.current_thread() is threading.main_thread()
        if self._main:
            numbers = [signal.SIGTERM, signal.SIGINT]
            if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
                numbers.append(signal.SIGHUP)
            self._previous = {number: signal.signal(number, self._set) for number in numbers}
        return self

    def _set(self, number: int, frame: FrameType | None) -> None:
        if self.received_s is None:
            self.received_s = time.time()
        self.received = True

    def __exit__(self, *_: object) -> None:
        if self._main:
            for number, handler in self._previous.items():
                signal.signal(number, handler)
