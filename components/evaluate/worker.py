"""One rank of an evaluation: sample its share of the images, and extract features of them and of its share of the references.

Promises: image i depends on (checkpoint, seed, i) only; shards are assigned to ranks by their index, so the number of ranks does not
change them; shards that a killed attempt stored are not sampled again, on this machine or another.
"""

import gc
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from components.errors import DataRefused, Preempted
from components.evaluate.chunks import ENERGY, FAKES, LOGITS, MAIN, MANIFOLD, MIRRORED, NOISE, REALS, chunk_path, save_chunk
from components.evaluate.codec import flipped_at_random, through_codec
from components.evaluate.metrics.table import Need, is_needed
from components.evaluate.samples import SampleStore, shards_of
from components.evaluate.spec import EvaluateSpec
from components.evaluate.spectrum import energy_per_octave
from components.evaluate.workers import BATCH_FILE, SPEC_FILE, EvaluateBatch
from components.features.build import build_extractor, build_vgg
from components.features.full_convolutions import full_convolutions
from components.manifests import ReferenceSplit, Split
from components.runtime.rank import Rank, worker_main
from components.stores.dataset_cache import fetch_pack
from components.stores.quarantine import quarantine
from components.system.work_folders import WorkFolder
from model import rng
from model.dataset import Pack
from model.generator import Generator, WeightsMismatch
from model.sampling import to_uint8

_EXTRACT_IMAGES = 64
_COMPILE_FROM_IMAGES = 5000
"""From so many images on, compiling the network takes less time than it saves."""
_SPLITS: dict[ReferenceSplit, tuple[Split, ...]] = {"train": ("train",), "held_out": ("held_out",), "all": ("train", "held_out")}


class _Worker:
    """The shards of one rank."""

    def __init__(self, spec: EvaluateSpec, rank: Rank, folder: Path, *, name: str = "") -> None:
        """`name` tells the progress of several evaluations apart."""
        self._spec = spec
        self._name = name
        self._rank = rank
        self._folder = folder
        self._device = rank.device(spec.resources.device)
        context, evaluation = rank.context, spec.evaluation
        weights = context.scratch(WorkFolder.WEIGHTS)
        with_logits = is_needed(Need.LOGITS, evaluation)
        self._extractor = build_extractor(evaluation, context.store, weights, self._device, with_logits=with_logits)
        self._vgg = build_vgg(evaluation.vgg_weights, evaluation.vgg_weights_sha256, context.store, weights, self._device)
        self._samples = SampleStore(context.store, spec.samples_uri(context.layout), image_px=spec.dataset.image_px)
        reads_references = not spec.reference_known or is_needed(Need.ENERGIES, evaluation)
        self._num_images = spec.num_images + (spec.num_reference if reads_references else 0)

    def run(self) -> None:
        """Process the generated images, then the references."""
        self._generate()
        self._process_references()
        if is_needed(Need.NOISE, self._spec.evaluation):
            for shard in self._missing_shards(self._spec.num_images, NOISE):
                self._save(NOISE, shard, self._noise(shard))
        self._report_progress(self._num_images)

    def _generate(self) -> None:
        stored = self._samples.committed_shards()
        shards = [
            shard
            for shard in self._share(self._spec.num_images)
            if self._samples.name(shard) not in stored or not chunk_path(self._folder, FAKES, MAIN, shard.start).exists()
        ]
        generator: Generator | None = None
        for index, shard in enumerate(shards):
            self._raise_if_stopped()
            images = self._samples.read(shard) if self._samples.name(shard) in stored else None
            if images is None and self._samples.name(shard) in stored:
                reason = f"samples {self._samples.name(shard)} are corrupt or incomplete"
                quarantine(self._samples.objects(shard), reason, store=self._rank.context.store, layout=self._rank.context.layout)
            if images is None:
                generator = generator or self._generator()
                images = self._sample(generator, shard, index, len(shards))
                self._samples.write(shard, images)
            stored_images = through_codec(images, self._spec.comparison.codec)
            if is_needed(Need.ENERGIES, self._spec.evaluation):
                self._save_energies(FAKES, shard, stored_images)
            self._save(FAKES, shard, stored_images)
            self._report_sampled((index + 1) / len(shards))

    def _sample(self, generator: Generator, shard: range, index: int, num_shards: int) -> Tensor:
        def on_step(done: int, total: int) -> None:
            self._report_sampled((index + done / total) / num_shards)

        evaluation = self._spec.evaluation
        limit = evaluation.shard_images if self._compiles else len(shard)  # the last shard must not be compiled anew
        return generator.draw(self._spec.sampling, shard, pass_images=evaluation.batch_images, limit=limit, on_step=on_step)

    @property
    def _compiles(self) -> bool:
        """Whether sampling is compiled; a function of the protocol and the device, so that a resumed evaluation does the same."""
        return self._device.type == "cuda" and self._spec.num_images >= _COMPILE_FROM_IMAGES

    def _report_sampled(self, share: float) -> None:
        self._report_progress(int(share * self._spec.num_images), doing=", sampling")

    def _report_progress(self, done: int, *, doing: str = "") -> None:
        """Report the progress of the first rank, in images that are sampled or of the references."""
        if self._rank.world.is_first:
            self._rank.context.events.progress(done, self._num_images, f"images{self._name}{doing}")

    def _generator(self) -> Generator:
        weights = load_file(self._folder / "weights.safetensors")
        sharers = self._rank.world.size if self._device.type == "cpu" else 1
        try:
            return Generator.from_spec(weights, self._spec.model, device=self._device, sharers=sharers, compiled=self._compiles)
        except WeightsMismatch as error:
            raise DataRefused(f"checkpoint {self._spec.checkpoint.uri}: {error}") from error

    def _process_references(self) -> None:
        """Store of the references what is needed and not known: features, and energies, which are quicker measured than kept."""
        spec, comparison, context = self._spec, self._spec.comparison, self._rank.context
        with_features, with_energies = not spec.reference_known, is_needed(Need.ENERGIES, spec.evaluation)
        parts = [part for part, needed in ((MAIN, with_features), (ENERGY, with_energies)) if needed]
        missing = list(dict.fromkeys(shard for part in parts for shard in self._missing_shards(spec.num_reference, REALS, part)))
        if not missing:
            return
        packs = [
            fetch_pack(spec.dataset, context.store, context.scratch(WorkFolder.PACKS), layout=context.layout, split=split)
            for split in _SPLITS[comparison.reference_split]
            if split == "train" or spec.dataset.num_held_out
        ]
        for index, shard in enumerate(missing):
            self._raise_if_stopped()
            self._report_progress(spec.num_images + index * spec.num_reference // len(missing), doing=", reading references")
            images = _images(packs, shard)
            if comparison.reference_flip:
                images = flipped_at_random(images, shard)
            stored = through_codec(images, comparison.codec)
            if with_energies:
                self._save_energies(REALS, shard, stored)
            if with_features:
                self._save(MIRRORED, shard, through_codec(images.flip(-1), comparison.codec))
                self._save(REALS, shard, stored)

    def _share(self, count: int) -> list[range]:
        """Return the shards of this rank."""
        world = self._rank.world
        return [shard for n, shard in enumerate(shards_of(count, self._spec.evaluation.shard_images)) if n % world.size == world.rank]

    def _missing_shards(self, count: int, kind: str, part: str = MAIN) -> Iterator[range]:
        """Yield the shards of this rank whose features, or another `part` of them, are not on this machine yet."""
        for shard in self._share(count):
            if not chunk_path(self._folder, kind, part, shard.start).exists():
                yield shard

    def _raise_if_stopped(self) -> None:
        if self._rank.stop_requested.is_set():
            raise Preempted("evaluation was stopped", hint="run it again: it resumes from the stored shards")

    def _noise(self, shard: range) -> Tensor:
        side = self._spec.dataset.image_px
        return to_uint8(rng.normal(self._spec.sampling.seed, rng.Stream.SAMPLE, 0, torch.tensor(list(shard)), (3, side, side)))

    def _save_energies(self, kind: str, shard: range, images: Tensor) -> None:
        parts = images.split(self._spec.evaluation.batch_images or _EXTRACT_IMAGES)
        save_chunk(self._folder, kind, ENERGY, shard.start, [energy_per_octave(part.to(self._device)) for part in parts])

    def _save(self, kind: str, shard: range, images: Tensor) -> None:
        """Store the features of some images; the main features, which mark the shard as done, come last."""
        size = self._spec.evaluation.batch_images or _EXTRACT_IMAGES
        batches = [batch.to(self._device) for batch in images.split(size)]
        with torch.inference_mode(), full_convolutions():
            features = [self._extractor(batch) for batch in batches]
            if self._vgg is not None and kind in (FAKES, REALS):
                save_chunk(self._folder, kind, MANIFOLD, shard.start, [self._vgg(batch)[0] for batch in batches])
        if kind == FAKES and len(features[0]) > 1:
            save_chunk(self._folder, kind, LOGITS, shard.start, [parts[1] for parts in features])
        save_chunk(self._folder, kind, MAIN, shard.start, [parts[0] for parts in features])


def _images(packs: list[Pack], shard: range) -> Tensor:
    """Return the images with the indices in `shard`, counted over all packs one after the other."""
    rows, first = [], 0
    for pack in packs:
        start, stop = max(shard.start - first, 0), min(shard.stop - first, len(pack))
        if start < stop:
            rows.append(np.array(pack.images[start:stop]))
        first += len(pack)
    return torch.from_numpy(np.concatenate(rows)).permute(0, 3, 1, 2)


def body(spec_path: Path, rank: Rank) -> None:
    """Process this rank's share of the evaluation in `spec_path`, or of those in a batch."""
    batch = EvaluateBatch.load(spec_path).folders if spec_path.name == BATCH_FILE else [str(spec_path.parent)]
    for number, folder in enumerate(map(Path, batch), start=1):
        spec = EvaluateSpec.load(folder / SPEC_FILE)
        torch.set_num_threads(spec.resources.threads)
        of = f" of step {spec.checkpoint.step}, EMA {spec.sampling.ema} ({number}/{len(batch)})" if len(batch) > 1 else ""
        if number > 1:
            gc.collect()  # a compiled network refers to itself, and this one needs the memory of the one before
        _Worker(spec, rank, folder, name=of).run()


if __name__ == "__main__":
    worker_main("evaluate", body)
