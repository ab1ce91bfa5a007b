"""Path, loss, averages and sampler fit together: a tiny network trained on two images draws those two images and nothing else."""

from pathlib import Path

import pytest
import torch
from celebdit_testing.memory import LocalSink, MemoryRecorder
from celebdit_testing.recipes import faces, tiny_network, tiny_pack

from model.config import DiffusionConfig, OptimizerConfig, Recipe, SamplingConfig, TrainingConfig
from model.distributed import World
from model.interfaces import Outputs
from model.trainer import Placement, Trainer

STEPS = 250
RECTIFIED_FLOW = (DiffusionConfig(), SamplingConfig(sampler="heun", num_steps=20))
DDPM = (
    DiffusionConfig(path="vp_linear", prediction="x", weighting="min_snr", times="uniform"),
    SamplingConfig(sampler="ddpm", num_steps=100),
)


@pytest.mark.fault
@pytest.mark.slow
@pytest.mark.parametrize(("diffusion", "sampling"), [RECTIFIED_FLOW, DDPM], ids=["rectified flow", "ddpm"])
def test_two_images_are_memorised(diffusion: DiffusionConfig, sampling: SamplingConfig, tmp_path: Path) -> None:
    recipe = Recipe(
        network=tiny_network(channels=(16, 32), latent_channels=16, patch_px=1),
        diffusion=diffusion,
        optimizer=OptimizerConfig(lr_peak=3e-3, warmup_steps=20, schedule="cosine", decay_steps=STEPS),
        training=TrainingConfig(
            total_steps=STEPS,
            batch_images=16,
            horizontal_flip=False,
            ema_sigma_rel=(0.1,),
            sample_every_steps=10**6,
            checkpoint_every_s=10**6,
        ),
        sampling=sampling,
    )
    pack = tiny_pack(tmp_path / "pack", count=2)
    recorder, sink = MemoryRecorder(), LocalSink(tmp_path / "checkpoints")
    trainer = Trainer(recipe, pack, Placement(World(), torch.device("cpu")), Outputs(recorder, sink))
    trainer.run()
    drawn, real = trainer.draw(torch.arange(16)).float(), torch.from_numpy(faces(2)).permute(0, 3, 1, 2).float()
    apart = float((real[0] - real[1]).square().mean().sqrt())
    assert apart > 50
    distances = (drawn[:, None] - real[None]).square().mean((2, 3, 4)).sqrt()
    assert float(distances.min(1).values.max()) < 10, f"of 255 grey levels; the two images are {apart:.0f} apart"
    assert set(distances.argmin(1).tolist()) == {0, 1}, "both images are drawn"
