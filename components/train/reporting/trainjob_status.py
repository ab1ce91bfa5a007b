"""Reports progress to Kubeflow Trainer (2.2 and newer), which shows it as `status.trainerStatus` of the TrainJob.

Promises: best effort and in the background: training never waits for it, an error is noted once, at most one request in five seconds, each
with a short time-out. The token is read anew for each request, because Kubernetes rotates it. Sends nothing where Trainer sets no address.
Source: Trainer's guide "TrainJob progress", with the feature gate TrainJobStatus.
"""

import json
import logging
import os
import threading
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

import urllib3

from components.errors import first_line

SERVER_URL = "KUBEFLOW_TRAINER_SERVER_URL"
SERVER_TOKEN = "KUBEFLOW_TRAINER_SERVER_TOKEN"  # noqa: S105 - a name
SERVER_CA_CERT = "KUBEFLOW_TRAINER_SERVER_CA_CERT"
"""Set by Trainer in its nodes: an address and two files."""
_EVERY_S = 5.0
_TIMEOUT_S = 3.0
_REPORTED = {"train/loss": "loss", "perf/images_per_s": "images_per_s"}
_log = logging.getLogger(__name__)


class TrainJobStatus:
    """Progress of one training, sent to Trainer by a thread of its own."""

    def __init__(
        self,
        url: str,
        token: Path | None,
        ca_cert: str | None,
        *,
        total_steps: int,
        batch_images: int,
        note: Callable[[str], object],
        every_s: float = _EVERY_S,
    ) -> None:
        self._url, self._token, self._every_s, self._note = url, token, every_s, note
        self._total_steps, self._batch_images = total_steps, batch_images
        self._pool = urllib3.PoolManager(ca_certs=ca_cert, retries=False, timeout=_TIMEOUT_S)
        self._latest: dict[str, Any] | None = None
        self._changed, self._stop = threading.Event(), threading.Event()
        self._failed = False
        self._thread = threading.Thread(target=self._send_until_closed, name="trainjob-status", daemon=True)
        self._thread.start()

    @classmethod
    def from_environment(
        cls, *, total_steps: int, batch_images: int, note: Callable[[str], object], environ: Mapping[str, str] = os.environ
    ) -> Self | None:
        """Return the reporter if Trainer asks for progress, else None."""
        url = environ.get(SERVER_URL)
        if not url:
            return None
        token = environ.get(SERVER_TOKEN)
        ca_cert = environ.get(SERVER_CA_CERT) or None
        return cls(url, Path(token) if token else None, ca_cert, total_steps=total_steps, batch_images=batch_images, note=note)

    def report(self, step: int, values: Mapping[str, float]) -> None:
        """Send this metric point soon, unless a newer one comes first."""
        images_per_s = values.get("perf/images_per_s", 0.0)
        remaining_s = (self._total_steps - step) * self._batch_images / images_per_s if images_per_s > 0 else None
        metrics = {"step": str(step), **{name: f"{values[key]:.6g}" for key, name in _REPORTED.items() if key in values}}
        self._latest = {
            "progressPercentage": min(100, 100 * step // self._total_steps),
            **({} if remaining_s is None else {"estimatedRemainingSeconds": round(remaining_s)}),
            "metrics": [{"name": name, "value": value} for name, value in metrics.items()],
            "lastUpdatedTime": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        }
        self._changed.set()

    def close(self) -> None:
        """Send what is left and end; takes no longer than one request may."""
        self._stop.set()
        self._changed.set()
        self._thread.join(_TIMEOUT_S + 1)

    def _send_until_closed(self) -> None:
        while True:
            self._changed.wait()
            self._changed.clear()
            if (status := self._latest) is not None:
                self._latest = None
                self._send(status)
            if self._stop.is_set():
                return
            self._stop.wait(self._every_s)

    def _send(self, status: Mapping[str, Any]) -> None:
        try:
            headers = {"Content-Type": "application/json"}
            if self._token is not None:
                headers["Authorization"] = f"Bearer {self._token.read_text().strip()}"
            body = json.dumps({"trainerStatus": status})
            answer = self._pool.request("POST", self._url, body=body, headers=headers, redirect=False)
            if answer.status >= 300:
                raise OSError(f"HTTP {answer.status}")
            self._failed = False
        except Exception as error:  # whatever happens, training continues
            if not self._failed:
                self._note(f"the progress was not reported to Kubeflow Trainer: {first_line(error)}; training continues")
            self._failed = True
            _log.info("reporting progress to Trainer failed at %.0f s", time.monotonic(), exc_info=error)
