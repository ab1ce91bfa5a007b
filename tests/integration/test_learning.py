"""The demo's recipe learns faces: the distance to the data falls far below that of noise."""

from pathlib import Path

import numpy as np
import pytest
import torch
from celebdit_testing.memory import LocalSink, MemoryRecorder
from celebdit_testing.packs import write_pack
from celebdit_testing.recipes import DIGEST, faces

from components.features.frechet import frechet_distance
from components.features.moments import statistics
from components.features.random_conv import RandomConvExtractor
from model import rng
from model.config import Recipe, TrainingConfig
from model.dataset import open_pack
from model.distributed import World
from model.interfaces import Outputs
from model.sampling import to_uint8
from model.trainer import Placement, Trainer
from pipeline.config import load_config

NUM_FACES, STEPS, NUM_SAMPLES, SAMPLER_STEPS = 600, 140, 96, 10


@pytest.mark.fault
@pytest.mark.slow
def test_the_demo_recipe_comes_far_closer_to_faces_than_noise_is(tmp_path: Path) -> None:
    config = load_config("demo")
    images = faces(NUM_FACES, 32)
    write_pack(tmp_path / "pack", images, [str(index) for index in range(NUM_FACES)], dataset_digest=DIGEST)
    training = TrainingConfig.model_validate({**config.training.model_dump(), "total_steps": STEPS, "sample_every_steps": 10**6})
    sampling = config.sampling.model_copy(update={"num_steps": SAMPLER_STEPS})
    recipe = Recipe(network=config.network, diffusion=config.diffusion, optimizer=config.optimizer, training=training, sampling=sampling)
    trainer = Trainer(
        recipe,
        open_pack(tmp_path / "pack"),
        Placement(World(), torch.device("cpu")),
        Outputs(MemoryRecorder(), LocalSink(tmp_path / "checkpoints")),
    )
    trainer.run()
    extractor = RandomConvExtractor()

    def distance(drawn: torch.Tensor) -> float:
        with torch.inference_mode():
            mine, real = (extractor(batch)[0].numpy() for batch in (drawn, torch.from_numpy(images).permute(0, 3, 1, 2)))
        return frechet_distance(statistics(mine), statistics(real))

    samples = torch.cat([trainer.draw(torch.arange(start, start + 48)) for start in range(0, NUM_SAMPLES, 48)])
    noise = to_uint8(rng.normal(0, rng.Stream.SAMPLE, 0, torch.arange(NUM_SAMPLES), (3, 32, 32)))
    of_samples, of_noise = distance(samples), distance(noise)
    assert np.isfinite(of_samples)
    assert of_samples < 0.25 * of_noise, f"distance {of_samples:.2f}, of noise {of_noise:.2f}"
