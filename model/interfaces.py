"""Interfaces through which the training loop records metrics, stores checkpoints and scores samples.

`components/train/` implements them with MLflow, object storage and the networks of the metrics, tests in memory. No method may wait for a
network connection: implementations queue their input and return.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

from jaxtyping import Float, UInt8
from torch import Tensor

from model.checkpoint import CheckpointState


@runtime_checkable
class Recorder(Protocol):
    """Records what is shown of a run."""

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Record one value per key at `step`."""

    def samples(self, step: int, images: UInt8[Tensor, "b 3 h w"]) -> None:
        """Record the sample images of `step`; image i is drawn from the same noise at every step."""

    def trace(self, step: int, write: Callable[[Path], None]) -> None:
        """Record a profile that ended at `step`; `write` writes it to a file (Chrome's trace format, gzip by the name)."""

    def progress(self, step: int, total_steps: int, text: str) -> None:
        """Report the progress of training."""


@runtime_checkable
class CheckpointSink(Protocol):
    """Makes snapshots durable in the background."""

    def ready(self) -> bool:
        """Return whether a snapshot would be accepted now: none is in flight."""

    def submit(self, snapshot: Callable[[], CheckpointState]) -> None:
        """Call `snapshot` (it copies to host memory) and make the result durable in the background.

        When not `ready`, this may wait until the one in flight is on local disk, but not for a network.
        """

    def drain(self) -> None:
        """Wait until everything submitted is durable.

        Raises:
            Exception: the error because of which a snapshot is not durable.
        """


@runtime_checkable
class Scorer(Protocol):
    """Compares images with the data by their features."""

    @property
    def num_images(self) -> int:
        """How many images it compares."""

    def features(self, images: UInt8[Tensor, "b 3 h w"]) -> Float[Tensor, "b d"]:
        """Return the features of images, on their device."""

    def scores(self, features: Float[Tensor, "n d"]) -> Mapping[str, float]:
        """Return the scores of the features of `num_images` images, one value per metric key."""


@dataclass(frozen=True)
class Outputs:
    """What a trainer writes to: metrics and samples, checkpoints, and snapshots of the averages if they are kept."""

    recorder: Recorder
    sink: CheckpointSink
    snapshots: CheckpointSink | None = None
