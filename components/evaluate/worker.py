"""One rank of an evaluation: draw its share of the images, and turn them and its share of the references into features.

Promises: image i depends on (checkpoint, seed, i) only; every forward pass has the same number of images, so the number of ranks does not
change them; what a killed attempt had finished is not done again. What the features mean is `evaluate.py`'s business.
"""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from components.context import read_section
from components.errors import DataRefused, Preempted
from components.evaluate.features import build_extractor
from components.evaluate.spec import EvaluateSpec
from components.packs import fetch_pack
from components.worker import Rank, worker_main
from model import rng
from model.config import DiffusionConfig, NetworkConfig
from model.dataset import Pack
from model.generator import Generator, WeightsMismatch
from model.sampling import to_uint8

IMAGES, FAKES, REALS, NOISE = "images", "fakes", "reals", "noise"


class _Worker:
    """The chunks of one rank."""

    def __init__(self, spec: EvaluateSpec, rank: Rank, folder: Path) -> None:
        self._spec = spec
        self._rank = rank
        self._folder = folder
        self._device = rank.device(spec.resources.device)
        self._extractor: nn.Module = build_extractor(spec.evaluation, rank.context.store, rank.context.scratch("weights"), self._device)

    def run(self) -> None:
        """Work off the generated images, then the references."""
        count = self._spec.evaluation.num_images
        self._draw(count)
        pack = fetch_pack(self._spec.dataset, self._rank.context.store, self._rank.context.scratch("packs"))
        for start, stop in self._mine(self._spec.num_reference, REALS):
            self._save(REALS, start, self._features(_images(pack, start, stop)))
        if self._spec.evaluation.extractor == "random-conv":
            for start, stop in self._mine(count, NOISE):
                self._save(NOISE, start, self._features(self._noise(start, stop)))

    def _draw(self, count: int) -> None:
        generator = self._generator()
        chunks = list(self._mine(count, FAKES))
        for number, (start, stop) in enumerate(chunks):

            def said(done: int, total: int, number: int = number) -> None:
                if self._rank.world.is_first:
                    share = (number + done / total) / len(chunks)
                    self._rank.context.events.progress(int(share * count), count, "images drawn")

            images = generator.draw(self._spec.sampling, range(start, stop), pass_images=self._spec.evaluation.batch_images, on_step=said)
            self._save(IMAGES, start, images.numpy())
            self._save(FAKES, start, self._features(images))

    def _generator(self) -> Generator:
        recipe = self._spec.checkpoint.recipe
        try:
            return Generator(
                load_file(self._folder / "weights.safetensors"),
                read_section(NetworkConfig, json.dumps(recipe["network"]), name="network"),
                read_section(DiffusionConfig, json.dumps(recipe["diffusion"]), name="diffusion"),
                device=self._device,
                precision=recipe["training"]["precision"],
            )
        except WeightsMismatch as error:
            raise DataRefused(f"checkpoint {self._spec.checkpoint.uri}: {error}") from error

    def _mine(self, count: int, kind: str) -> Iterator[tuple[int, int]]:
        """Yield the ranges of this rank that are not done yet."""
        size, world = self._spec.evaluation.batch_images, self._rank.world
        for number, start in enumerate(range(0, count, size)):
            if self._rank.stop_asked.is_set():
                raise Preempted("evaluation was stopped", hint="run it again: it continues where it was")
            if number % world.size == world.rank and not chunk_path(self._folder, kind, start).exists():
                yield start, min(start + size, count)

    def _features(self, images: Tensor) -> np.ndarray:
        with torch.inference_mode():
            return np.asarray(self._extractor(images.to(self._device))[0].float().cpu().numpy())

    def _noise(self, start: int, stop: int) -> Tensor:
        side = self._spec.dataset.image_px
        return to_uint8(rng.normal(self._spec.sampling.seed, rng.Stream.SAMPLE, 0, torch.arange(start, stop), (3, side, side)))

    def _save(self, kind: str, start: int, rows: np.ndarray) -> None:
        path = chunk_path(self._folder, kind, start)
        partial = path.with_suffix(".partial")
        with partial.open("wb") as file:
            np.save(file, rows, allow_pickle=False)
        partial.replace(path)


def chunk_path(folder: Path, kind: str, start: int) -> Path:
    """Return where the rows of a chunk lie."""
    return folder / f"{kind}-{start:08d}.npy"


def load_chunks(folder: Path, kind: str) -> np.ndarray:
    """Return all rows of a kind, in the order of their indices."""
    return np.concatenate([np.load(path, allow_pickle=False) for path in sorted(folder.glob(f"{kind}-*.npy"))])


def _images(pack: Pack, start: int, stop: int) -> Tensor:
    return torch.from_numpy(np.array(pack.images[start:stop])).permute(0, 3, 1, 2)


def body(spec_path: Path, rank: Rank) -> None:
    """Work off this rank's share of the evaluation in `spec_path`."""
    spec = EvaluateSpec.load(spec_path)
    torch.set_num_threads(spec.resources.threads)
    _Worker(spec, rank, spec_path.parent).run()


if __name__ == "__main__":
    worker_main("evaluate", body)
