"""Distillation in the training loop of one process: where it begins, exact resume, and what a checkpoint holds."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from celebdit_testing.memory import LocalSink, MemoryRecorder
from celebdit_testing.recipes import tiny_pack, tiny_recipe, tiny_student
from torch import Tensor

from model.checkpoint import read
from model.config import OptimizerConfig, Recipe
from model.dataset import Pack
from model.denoiser import build_denoiser
from model.distributed import World
from model.generator import Generator
from model.guard import NonFinite
from model.interfaces import Outputs
from model.memory_estimate import checkpoint_bytes
from model.state import StateMismatch
from model.trainer import Placement, Trainer

CPU = torch.device("cpu")


@pytest.fixture
def pack(tmp_path: Path) -> Pack:
    return tiny_pack(tmp_path / "pack")


@pytest.fixture(scope="module")
def teacher() -> dict[str, Tensor]:
    return teacher_of(tiny_recipe())


def teacher_of(recipe: Recipe) -> dict[str, Tensor]:
    """Return weights away from their zero initialisation, where most gradients vanish."""
    network, generator = build_denoiser(recipe.network, seed=1), torch.Generator().manual_seed(0)
    return {name: tensor + 0.05 * torch.randn(tensor.shape, generator=generator) for name, tensor in network.state_dict().items()}


class Run:
    """One trainer of a student with its recorder, sink and losses."""

    def __init__(self, recipe: Recipe, pack: Pack, teacher: Mapping[str, Tensor], folder: Path, **arguments: Any) -> None:
        self.recorder, self.sink, self.losses = MemoryRecorder(), LocalSink(folder), dict[int, str]()
        outputs = Outputs(self.recorder, self.sink)
        self.trainer = Trainer(recipe, pack, Placement(World(), CPU), outputs, teacher=teacher, **arguments)

    def go(self, **arguments: Any) -> "Run":
        self.trainer.run(on_step=lambda step, loss: self.losses.__setitem__(step, loss.hex()), **arguments)
        return self


def test_a_student_begins_as_its_teacher(tmp_path: Path, pack: Pack, teacher: dict[str, Tensor]) -> None:
    recipe = tiny_student()
    trainer = Run(recipe, pack, teacher, tmp_path).trainer
    images = Generator(teacher, recipe.network, recipe.diffusion, device=CPU).draw(recipe.sampling, range(16), pass_images=16)
    assert torch.equal(trainer.draw(torch.arange(16)), images)
    saved = trainer.snapshot().tensors
    for group in ("weights", "ema-0.1", "auxiliary"):
        assert all(torch.equal(saved[group][name], tensor) for name, tensor in teacher.items()), group


@pytest.mark.parametrize("stop_after", [1, 3, 5])
@pytest.mark.parametrize("network", [{}, {"dropout": 0.3, "codec_dropout": 0.2}], ids=str)
def test_a_resumed_distillation_is_bitwise_the_uninterrupted_one(
    tmp_path: Path, pack: Pack, teacher: dict[str, Tensor], stop_after: int, network: dict[str, float]
) -> None:
    recipe = tiny_student(total_steps=6, network=network, ema_decay=0.9)
    uninterrupted = Run(recipe, pack, teacher, tmp_path / "uninterrupted").go()
    first = Run(recipe, pack, teacher, tmp_path / "parts")
    first.go(stop_requested=lambda: first.trainer.step >= stop_after)
    second = Run(recipe, pack, teacher, tmp_path / "parts")
    second.trainer.restore(read(first.sink.published[-1].directory))
    torch.manual_seed(stop_after)
    second.go()
    assert {**first.losses, **second.losses} == uninterrupted.losses
    assert second.sink.published[-1].digest == uninterrupted.sink.published[-1].digest


def test_a_student_learns_from_augmented_images_as_its_teacher_did(tmp_path: Path, pack: Pack) -> None:
    recipe = tiny_student(total_steps=4, network={"augmentation": 0.5})
    teacher, name = teacher_of(recipe), "augmentation.linear.weight"
    uninterrupted = Run(recipe, pack, teacher, tmp_path / "uninterrupted").go()
    first = Run(recipe, pack, teacher, tmp_path / "parts")
    first.go(stop_requested=lambda: first.trainer.step >= 2)
    second = Run(recipe, pack, teacher, tmp_path / "parts")
    second.trainer.restore(read(first.sink.published[-1].directory))
    second.go()
    assert {**first.losses, **second.losses} == uninterrupted.losses
    assert second.sink.published[-1].digest == uninterrupted.sink.published[-1].digest
    saved = read(second.sink.published[-1].directory).tensors
    assert all(not torch.equal(saved[group][name], teacher[name]) for group in ("weights", "auxiliary")), "both have a gradient by it"
    without = {key: tensor for key, tensor in teacher.items() if key != name}
    assert Run(tiny_student(total_steps=4), pack, without, tmp_path / "plain").go().losses != uninterrupted.losses


def test_both_networks_learn_and_the_teacher_does_not(tmp_path: Path, pack: Pack, teacher: dict[str, Tensor]) -> None:
    before = {name: tensor.clone() for name, tensor in teacher.items()}
    run = Run(tiny_student(), pack, teacher, tmp_path).go()
    saved = read(run.sink.published[-1].directory).tensors
    for group in ("weights", "auxiliary"):
        assert not torch.equal(saved[group]["core.out.weight"], teacher["core.out.weight"]), group
    assert not torch.equal(saved["weights"]["core.out.weight"], saved["auxiliary"]["core.out.weight"])
    frozen = run.trainer.training_step._teacher.state_dict()  # type: ignore[attr-defined]
    assert all(torch.equal(frozen[name], tensor) for name, tensor in before.items())


def test_accumulation_gives_the_gradients_of_the_whole_batch(tmp_path: Path, pack: Pack, teacher: dict[str, Tensor]) -> None:
    gradients, unclipped = [], OptimizerConfig(clip_norm=1e9)
    for size in (None, 2):
        recipe = tiny_student(total_steps=1, microbatch_images=size).model_copy(update={"optimizer": unclipped})
        trainer = Run(recipe, pack, teacher, tmp_path / str(size)).trainer
        trainer.run()
        networks = (trainer.network, trainer.training_step.auxiliary)  # type: ignore[attr-defined]
        gradients.append([parameter.grad for network in networks for parameter in network.parameters()])
    largest = max(float(gradient.abs().max()) for gradient in gradients[0])
    for whole_batch, parts in zip(*gradients, strict=True):
        torch.testing.assert_close(parts, whole_batch, rtol=1e-4, atol=1e-6 * largest)


def test_a_checkpoint_has_the_estimated_size_and_a_training_from_scratch_no_second_network(
    tmp_path: Path, pack: Pack, teacher: dict[str, Tensor]
) -> None:
    for recipe, weights, distilled in ((tiny_student(total_steps=1), teacher, True), (tiny_recipe(total_steps=1), None, False)):
        trainer = Run(recipe, pack, weights, tmp_path / str(distilled)).go().trainer  # type: ignore[arg-type]
        saved = trainer.snapshot().tensors
        assert ({"auxiliary", "auxiliary-optimizer"} <= set(saved)) == distilled
        size = sum(tensor.numel() * tensor.element_size() for group in saved.values() for tensor in group.values())
        assert size == trainer.checkpoint_bytes == checkpoint_bytes(recipe.network, recipe.training, distilled=distilled)


def test_a_checkpoint_without_the_second_network_is_refused(tmp_path: Path, pack: Pack, teacher: dict[str, Tensor]) -> None:
    saved = Run(tiny_student(), pack, teacher, tmp_path / "a").go().trainer.snapshot()
    del saved.tensors["auxiliary"]
    with pytest.raises(StateMismatch, match="no group 'auxiliary'"):
        Run(tiny_student(), pack, teacher, tmp_path / "b").trainer.restore(saved)


def test_no_network_takes_in_a_step_that_is_not_finite(tmp_path: Path, pack: Pack, teacher: dict[str, Tensor]) -> None:
    run = Run(tiny_student(), pack, teacher, tmp_path)
    run.go(stop_requested=lambda: run.trainer.step >= 2)
    before = run.trainer.snapshot().tensors
    with torch.no_grad():
        run.trainer.training_step._teacher.core.out.bias.fill_(float("nan"))  # type: ignore[attr-defined]
    with pytest.raises(NonFinite) as raised:
        run.go()
    assert (raised.value.step, len(raised.value.keys)) == (2, 8)
    after = run.trainer.snapshot().tensors
    for group in ("weights", "auxiliary", "optimizer", "auxiliary-optimizer"):
        assert all(torch.equal(before[group][name], tensor) for name, tensor in after[group].items()), group


def test_the_loss_of_a_student_on_held_out_images_is_not_measured(tmp_path: Path, pack: Pack, teacher: dict[str, Tensor]) -> None:
    run = Run(tiny_student(total_steps=2), pack, teacher, tmp_path, held_out=pack).go()
    assert sorted(run.recorder.images) == [2]
    assert not [key for key, _ in run.recorder.values if "held_out" in key]


def test_a_student_needs_a_teacher(tmp_path: Path, pack: Pack) -> None:
    with pytest.raises(AssertionError, match="needs a teacher"):
        Run(tiny_student(), pack, None, tmp_path)  # type: ignore[arg-type]
