"""Recorder and checkpoint sink that keep everything in memory and on local disk, for the training loop alone."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from jaxtyping import UInt8
from torch import Tensor

from model.checkpoint import CheckpointState, publish
from model.checkpoint_manifest import Checkpoint


@dataclass
class MemoryRecorder:
    values: dict[tuple[str, int], float] = field(default_factory=dict)
    images: dict[int, Tensor] = field(default_factory=dict)
    traces: dict[int, Callable[[Path], None]] = field(default_factory=dict)

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        for key, value in values.items():
            assert (key, step) not in self.values, f"{key} recorded twice at step {step}"
            self.values[key, step] = value

    def samples(self, step: int, images: UInt8[Tensor, "b 3 h w"]) -> None:
        self.images[step] = images

    def trace(self, step: int, write: Callable[[Path], None]) -> None:
        self.traces[step] = write

    def progress(self, step: int, total_steps: int, text: str) -> None:
        pass


@dataclass
class LocalSink:
    folder: Path
    published: list[Checkpoint] = field(default_factory=list)

    def ready(self) -> bool:
        return True

    def submit(self, snapshot: Callable[[], CheckpointState]) -> None:
        self.published.append(publish(snapshot(), self.folder))

    def drain(self) -> None:
        pass
