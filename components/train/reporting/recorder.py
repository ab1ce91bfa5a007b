"""Records metrics and samples in the journal; samples as a grid and as single images.

Promises: keys and order of the images are the same in all runs, so that the MLflow UI shows them side by side. Never waits for the network.
"""

from collections.abc import Callable, Mapping
from pathlib import Path

from jaxtyping import UInt8
from torch import Tensor

from components.reports.image_grid import SAMPLE_GRID_KEY, enlarge, grid
from components.tracking.journal import Journal

SINGLE_KEY = "samples/seed_{:03d}"
NUM_SINGLES = 8
TRACE_FILE = "profile/step-{:09d}.json.gz"


class JournalRecorder:
    """The trainer's recorder on rank 0."""

    def __init__(
        self,
        journal: Journal,
        on_progress: Callable[[int, int, str], None],
        *on_metrics: Callable[[int, Mapping[str, float]], None],
    ) -> None:
        self._journal = journal
        self._on_metrics = on_metrics
        self._on_progress = on_progress

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        self._journal.add_metrics(step, values)
        for listener in self._on_metrics:
            listener(step, values)

    def samples(self, step: int, images: UInt8[Tensor, "b 3 h w"]) -> None:
        tiles = [enlarge(tile) for tile in images.permute(0, 2, 3, 1).numpy()]
        self._journal.add_image(step, SAMPLE_GRID_KEY, grid(tiles))
        for index, tile in enumerate(tiles[:NUM_SINGLES]):
            self._journal.add_image(step, SINGLE_KEY.format(index), tile)

    def trace(self, step: int, write: Callable[[Path], None]) -> None:
        self._journal.add_file(TRACE_FILE.format(step), write)

    def progress(self, step: int, total_steps: int, text: str) -> None:
        self._on_progress(step, total_steps, text)


class SilentRecorder:
    """The recorder of all ranks but the first."""

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Record nothing."""

    def samples(self, step: int, images: UInt8[Tensor, "b 3 h w"]) -> None:
        """Record nothing."""

    def trace(self, step: int, write: Callable[[Path], None]) -> None:
        """Record nothing."""

    def progress(self, step: int, total_steps: int, text: str) -> None:
        """Record nothing."""
