"""The held-out loss: the gap opens where a network memorises, and measuring changes nothing."""

from pathlib import Path

import pytest
import torch
from celebdit_testing.memory import LocalSink, MemoryRecorder
from celebdit_testing.packs import write_pack
from celebdit_testing.recipes import DIGEST, faces, tiny_pack, tiny_recipe
from torch import Tensor

from model.checkpoint import read
from model.dataset import Pack, open_pack
from model.diffusion import build_diffusion
from model.distributed import World
from model.held_out import NUM_TIMES, HeldOutLoss
from model.interfaces import Outputs
from model.trainer import Placement, Trainer

CPU = torch.device("cpu")
KEYS = ("train/held_out_loss", "train/seen_loss", "train/held_out_gap")


@pytest.fixture(scope="module")
def packs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Pack, Pack]:
    """Four images to train on and six others."""
    folder = tmp_path_factory.mktemp("held-out")
    write_pack(folder, faces(10)[4:], [f"other{index}" for index in range(6)], dataset_digest=DIGEST)
    return tiny_pack(tmp_path_factory.mktemp("seen"), 4), open_pack(folder)


def trained(packs: tuple[Pack, Pack | None], folder: Path, **training: object) -> tuple[Trainer, MemoryRecorder, LocalSink]:
    recipe = tiny_recipe(**{"network": {"dropout": 0.1}, "horizontal_flip": False, **training})  # type: ignore[arg-type]
    recorder, sink = MemoryRecorder(), LocalSink(folder)
    trainer = Trainer(recipe, packs[0], Placement(World(), CPU), Outputs(recorder, sink), held_out=packs[1])
    trainer.run()
    return trainer, recorder, sink


def test_the_gap_is_positive_where_training_images_are_known(packs: tuple[Pack, Pack]) -> None:
    known = torch.from_numpy(packs[0].images.copy()).permute(0, 3, 1, 2).float() / 127.5 - 1

    def network(x: Tensor, t: Tensor) -> Tensor:
        return known[torch.cdist(x.flatten(1), known.flatten(1)).argmin(1)]

    measured = HeldOutLoss(build_diffusion(tiny_recipe().diffusion), packs[1], packs[0], 100, world=World(), device=CPU).measure(network)
    assert measured["train/held_out_gap"] > 5 * measured["train/seen_loss"]
    assert measured["train/held_out_gap"] == pytest.approx(measured["train/held_out_loss"] - measured["train/seen_loss"])


@pytest.mark.fault
@pytest.mark.slow
def test_the_gap_opens_when_a_network_learns_its_few_images_by_heart(packs: tuple[Pack, Pack], tmp_path: Path) -> None:
    _, recorder, _ = trained(packs, tmp_path, total_steps=120, sample_every_steps=60, log_every_steps=60, network={"dropout": 0.0})
    values = {key: [recorder.values[key, step] for step in (60, 120)] for key in KEYS}
    for held_out, seen, gap in zip(*values.values(), strict=True):
        assert gap == pytest.approx(held_out - seen)
    assert values["train/seen_loss"][1] < values["train/seen_loss"][0]
    assert values["train/held_out_gap"][1] > 1.5 * max(values["train/held_out_gap"][0], 0.0)
    assert values["train/held_out_gap"][1] > 0.05 * values["train/seen_loss"][1]


def test_measuring_changes_no_weight(packs: tuple[Pack, Pack], tmp_path: Path) -> None:
    *_, with_it = trained(packs, tmp_path / "with", total_steps=4, sample_every_steps=2)
    *_, without = trained((packs[0], None), tmp_path / "without", total_steps=4, sample_every_steps=2)
    *_, off = trained(packs, tmp_path / "off", total_steps=4, sample_every_steps=2, held_out_images=0)
    states = [read(sink.published[-1].directory).tensors for sink in (with_it, without, off)]
    for group, tensors in states[0].items():
        for name, tensor in tensors.items():
            assert torch.equal(tensor, states[1][group][name])
            assert torch.equal(tensor, states[2][group][name])


def test_nothing_is_recorded_without_held_out_images_or_with_the_setting_off(packs: tuple[Pack, Pack], tmp_path: Path) -> None:
    _, without, _ = trained((packs[0], None), tmp_path / "a", total_steps=2, sample_every_steps=2)
    _, off, _ = trained(packs, tmp_path / "b", total_steps=2, sample_every_steps=2, held_out_images=0)
    assert not {key for key, _ in [*without.values, *off.values]} & set(KEYS)


def test_the_run_is_the_same_run_with_the_setting_on_or_off() -> None:
    on, off = tiny_recipe(held_out_images=500), tiny_recipe(held_out_images=0)
    assert on.identity("d" * 64) == off.identity("d" * 64)


def test_both_sides_get_the_same_noise_and_times_and_each_image_all_of_them(packs: tuple[Pack, Pack]) -> None:
    seen: list[tuple[Tensor, Tensor]] = []

    def network(x: Tensor, t: Tensor) -> Tensor:
        seen.append((x, t))
        return torch.zeros_like(x)

    diffusion = build_diffusion(tiny_recipe().diffusion)
    same = HeldOutLoss(diffusion, packs[0], packs[0], 100, world=World(), device=CPU).measure(network)
    assert same["train/held_out_gap"] == 0
    assert len(seen) == 2 * NUM_TIMES
    assert torch.equal(seen[0][0], seen[NUM_TIMES][0])
    assert len({float(t[0]) for _, t in seen}) == NUM_TIMES
    before = list(seen)
    HeldOutLoss(diffusion, packs[0], packs[0], 100, world=World(), device=CPU).measure(network)
    assert all(torch.equal(a[0], b[0]) for a, b in zip(before, seen[len(before) :], strict=True)), "also at the next measurement"


def test_the_ranks_share_the_images(packs: tuple[Pack, Pack], monkeypatch: pytest.MonkeyPatch) -> None:
    diffusion, whole = build_diffusion(tiny_recipe().diffusion), World()

    def network(x: Tensor, t: Tensor) -> Tensor:
        return x * 0.3

    expected = HeldOutLoss(diffusion, packs[1], packs[0], 3, world=whole, device=CPU).measure(network)
    sums: list[Tensor] = []
    monkeypatch.setattr("model.held_out.gather_rows", lambda rows, world: sums.append(rows) or rows)
    for rank in range(2):
        HeldOutLoss(diffusion, packs[1], packs[0], 3, world=World(rank=rank, size=2), device=CPU).measure(network)
    held_out, training = (torch.cat(sums).sum(0) / (3 * NUM_TIMES)).tolist()
    assert [held_out, training] == pytest.approx([expected["train/held_out_loss"], expected["train/seen_loss"]], rel=1e-12)
