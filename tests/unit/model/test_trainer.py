"""The training loop in one process: exact resume, exact accumulation, guards, and what it reports."""

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from celebdit_testing.memory import LocalSink, MemoryRecorder
from celebdit_testing.recipes import tiny_pack, tiny_recipe

from model.checkpoint import read
from model.config import Recipe
from model.dataset import Pack
from model.distributed import World
from model.guard import NonFinite
from model.interfaces import Outputs
from model.state import StateMismatch
from model.trainer import Placement, Trainer

CPU = torch.device("cpu")
HERE = Placement(World(), CPU)


@pytest.fixture
def pack(tmp_path: Path) -> Pack:
    return tiny_pack(tmp_path / "pack")


class Run:
    """One trainer with its recorder, sink and losses."""

    def __init__(self, recipe: Recipe, pack: Pack, folder: Path) -> None:
        self.recorder, self.sink, self.losses = MemoryRecorder(), LocalSink(folder), {}
        self.trainer = Trainer(recipe, pack, HERE, Outputs(self.recorder, self.sink))

    def go(self, **arguments: Any) -> "Run":
        self.losses: dict[int, str] = {}
        self.trainer.run(on_step=lambda step, loss: self.losses.__setitem__(step, loss.hex()), **arguments)
        return self


def away_from_zero(trainer: Trainer) -> None:
    """Move the weights off their zero initialisation, where most gradients vanish."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in trainer.network.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))


@pytest.mark.parametrize(
    ("stop_after", "network"),
    [(at, {"dropout": dropout}) for at in (1, 3, 5) for dropout in (0.0, 0.3)]
    + [(3, {"linear_path": True, "local_share": True}), (3, {"augmentation": 0.5})]
    + [(3, {"codec_dropout": 0.3}), (3, {"codec_dropout": 0.3, "res_norm": "layer"}), (3, {"codec_dropout": 0.3, "dropout": 0.2})],
    ids=str,
)
def test_resumed_training_is_bitwise_the_uninterrupted_one(tmp_path: Path, pack: Pack, stop_after: int, network: dict[str, object]) -> None:
    recipe = tiny_recipe(total_steps=8, network=network, ema_decay=0.9)
    uninterrupted = Run(recipe, pack, tmp_path / "uninterrupted").go()
    first = Run(recipe, pack, tmp_path / "parts")
    first.go(stop_requested=lambda: first.trainer.step >= stop_after)
    second = Run(recipe, pack, tmp_path / "parts")
    second.trainer.restore(read(first.sink.published[-1].directory))
    second.go()
    assert first.trainer.step == stop_after
    assert {**first.losses, **second.losses} == uninterrupted.losses
    assert second.sink.published[-1].digest == uninterrupted.sink.published[-1].digest
    recorded = {key: value for key, value in {**first.recorder.values, **second.recorder.values}.items() if key[0].startswith("train/")}
    assert recorded == {key: value for key, value in uninterrupted.recorder.values.items() if key[0].startswith("train/")}


def test_accumulation_gives_the_gradient_of_the_whole_batch(tmp_path: Path, pack: Pack) -> None:
    gradients = []
    for size in (None, 2):
        trainer = Run(tiny_recipe(total_steps=1, microbatch_images=size), pack, tmp_path / str(size)).trainer
        away_from_zero(trainer)
        trainer.run()
        gradients.append([parameter.grad for parameter in trainer.network.parameters()])
    # Some gradients are zero but for rounding (a bias before a normalisation), so the tolerance is that of the largest.
    largest = max(float(gradient.abs().max()) for gradient in gradients[0])
    for whole_batch, parts in zip(*gradients, strict=True):
        torch.testing.assert_close(parts, whole_batch, rtol=1e-4, atol=1e-6 * largest)


def test_the_network_starts_as_a_function_of_the_seed(tmp_path: Path, pack: Pack) -> None:
    weights = [Run(tiny_recipe(seed=seed), pack, tmp_path).trainer.snapshot().tensors["weights"]["core.embed.weight"] for seed in (1, 1, 2)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def poison(trainer: Trainer, image: int = 3) -> None:
    """Let the loss of one image of every batch be no number from now on."""
    healthy = trainer.training_step.diffusion

    class Poison:
        def __getattr__(self, name: str) -> Any:
            return getattr(healthy, name)

        def losses(self, *arguments: Any) -> torch.Tensor:
            values = healthy.losses(*arguments)
            return torch.where(torch.arange(len(values)) == image, torch.full_like(values, float("nan")), values)

    trainer.training_step.diffusion = Poison()  # type: ignore[assignment]


def test_a_non_finite_loss_stops_before_the_weights_take_it_in(tmp_path: Path, pack: Pack) -> None:
    run = Run(tiny_recipe(), pack, tmp_path)
    run.go(stop_requested=lambda: run.trainer.step >= 2)
    before = run.trainer.snapshot()
    poison(run.trainer)
    with pytest.raises(NonFinite) as raised:
        run.go()
    after = run.trainer.snapshot()
    assert raised.value.step == 2
    assert len(raised.value.keys) == 1
    assert raised.value.keys[0].startswith("key")
    assert all(torch.equal(before.tensors["weights"][name], tensor) for name, tensor in after.tensors["weights"].items())
    assert all(torch.equal(before.tensors["optimizer"][name], tensor) for name, tensor in after.tensors["optimizer"].items())


def test_where_bad_steps_are_seen_late_nothing_of_them_is_stored_meanwhile(tmp_path: Path, pack: Pack) -> None:
    """On a GPU numbers are read back only at metric points; here that is done on the CPU."""
    recipe = tiny_recipe(log_every_steps=6, checkpoint_every_s=1.0, ema_snapshot_every_steps=1)
    sink, averages = LocalSink(tmp_path / "checkpoints"), LocalSink(tmp_path / "averages")
    seconds = itertools.count(0.0, 10.0)
    trainer = Trainer(
        recipe,
        pack,
        HERE,
        Outputs(MemoryRecorder(), sink, averages),
        clock=lambda: next(seconds),
    )
    trainer._checks_every_step = False
    trainer.run(stop_requested=lambda: trainer.step >= 2)
    poison(trainer)
    with pytest.raises(NonFinite) as raised:
        trainer.run()
    assert (raised.value.step, trainer.step) == (2, 6)
    assert [stored.step for stored in averages.published] == [1, 2]
    assert [stored.step for stored in sink.published] == [1, 2]


def test_a_stop_after_a_bad_step_still_waits_for_what_was_stored_before(tmp_path: Path, pack: Pack) -> None:
    waited: list[int] = []

    class Slow(LocalSink):
        def drain(self) -> None:
            waited.append(trainer.step)

    sink = Slow(tmp_path)
    trainer = Trainer(tiny_recipe(log_every_steps=6), pack, HERE, Outputs(MemoryRecorder(), sink))
    trainer._checks_every_step = False
    poison(trainer)
    assert trainer.run(stop_requested=lambda: trainer.step >= 3) is False
    assert (waited, sink.published) == ([3], [])


def test_a_state_of_another_network_is_refused_by_tensor(tmp_path: Path, pack: Pack) -> None:
    saved = Run(tiny_recipe(), pack, tmp_path / "a").go().trainer.snapshot()
    with pytest.raises(StateMismatch, match=r"tensor .* is "):
        Run(tiny_recipe(network={"width": 64}), pack, tmp_path / "b").trainer.restore(saved)
    del saved.tensors["weights"]["core.out.bias"]
    with pytest.raises(StateMismatch, match=r"core\.out\.bias is missing"):
        Run(tiny_recipe(), pack, tmp_path / "c").trainer.restore(saved)


def test_samples_are_recorded_at_their_steps_from_the_same_noise(tmp_path: Path, pack: Pack) -> None:
    run = Run(tiny_recipe(total_steps=6, sample_every_steps=3), pack, tmp_path).go()
    assert sorted(run.recorder.images) == [3, 6]
    assert run.recorder.images[6].shape == (16, 3, 16, 16)
    again = run.trainer.draw(torch.arange(16))
    assert torch.equal(again, run.recorder.images[6])


def test_training_lowers_the_loss(tmp_path: Path, pack: Pack) -> None:
    run = Run(tiny_recipe(total_steps=60, log_every_steps=20), pack, tmp_path).go()
    assert run.recorder.values["train/loss", 60] < 0.8 * run.recorder.values["train/loss", 20]


def test_checkpoints_come_at_the_asked_interval_of_time(tmp_path: Path, pack: Pack) -> None:
    now = [0.0]

    def clock() -> float:
        now[0] += 0.25
        return now[0]

    recorder, sink = MemoryRecorder(), LocalSink(tmp_path)
    recipe = tiny_recipe(total_steps=20, checkpoint_every_s=10.0)
    Trainer(recipe, pack, HERE, Outputs(recorder, sink), clock=clock).run()
    steps = [checkpoint.step for checkpoint in sink.published]
    assert steps[-1] == 20
    assert 1 <= len(steps) - 1 <= 4, f"about one per 10 of {now[0]:.0f} seconds, got {steps}"


def test_a_trace_of_the_asked_steps_is_recorded_once(tmp_path: Path, pack: Pack) -> None:
    run = Run(tiny_recipe(total_steps=9, profile_steps=2), pack, tmp_path).go()
    ((step, write),) = run.recorder.traces.items()
    assert step == 5, "three warm steps, two traced ones"
    write(tmp_path / "trace.json")
    names = {event.get("name") for event in json.loads((tmp_path / "trace.json").read_text())["traceEvents"]}
    assert any("conv" in str(name) for name in names)


def test_a_run_that_ends_while_it_is_traced_still_has_a_trace(tmp_path: Path, pack: Pack) -> None:
    run = Run(tiny_recipe(total_steps=4, profile_steps=100), pack, tmp_path).go()
    assert list(run.recorder.traces) == [4]


def test_milestones_are_saved_whatever_the_clock_says(tmp_path: Path, pack: Pack) -> None:
    run = Run(tiny_recipe(total_steps=10, checkpoint_keep_every_steps=4), pack, tmp_path).go()
    assert [checkpoint.step for checkpoint in run.sink.published] == [4, 8, 10]


def test_the_probe_is_asked_at_every_metric_point(tmp_path: Path, pack: Pack) -> None:
    recorder = MemoryRecorder()
    recipe = tiny_recipe(total_steps=4)
    probe_values = iter((10.0, 30.0))
    probe = lambda: {"cpu_percent": next(probe_values)}  # noqa: E731
    Trainer(recipe, pack, Placement(World(), CPU, probe=probe), Outputs(recorder, LocalSink(tmp_path))).run()
    assert recorder.values["system/node_0/cpu_percent", 2] == 10.0
    assert recorder.values["system/node_0/cpu_percent", 4] == 30.0
