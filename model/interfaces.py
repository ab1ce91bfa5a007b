"""What the training loop asks of the outside world; `components/` answers it with MLflow and object storage, tests with memory.

Promises nothing itself. No method may block the loop on a network: a recorder and a checkpoint sink take what they are given and return.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol, runtime_checkable

from jaxtyping import UInt8
from torch import Tensor

from model.checkpoint import CheckpointState


@runtime_checkable
class Recorder(Protocol):
    """Takes what people want to see of a run."""

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Record one value per key at `step`."""

    def samples(self, step: int, images: UInt8[Tensor, "b 3 h w"]) -> None:
        """Record the sample images of `step`; image i is drawn from the same noise at every step."""

    def trace(self, step: int, write: Callable[[Path], None]) -> None:
        """Record a profile that ended at `step`; `write` writes it to a file (Chrome's trace format, gzip by the name)."""

    def progress(self, step: int, total_steps: int, text: str) -> None:
        """Say how far training is."""


@runtime_checkable
class CheckpointSink(Protocol):
    """Takes snapshots and makes them durable in the background."""

    def ready(self) -> bool:
        """Return whether a snapshot would be taken now: none is in flight."""

    def submit(self, snapshot: Callable[[], CheckpointState]) -> None:
        """Call `snapshot` (it copies to host memory) and make the result durable in the background.

        When not `ready`, this may wait until the one in flight is on local disk, but not for a network.
        """

    def drain(self) -> None:
        """Wait until everything submitted is durable.

        Raises:
            Exception: the error that kept a snapshot from becoming durable.
        """
