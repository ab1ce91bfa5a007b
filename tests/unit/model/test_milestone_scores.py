"""Scores at milestones: the same images at each, nothing of the training changes, and a stop neither loses nor repeats one."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from celebdit_testing.memory import LocalSink, MemoryRecorder
from celebdit_testing.recipes import tiny_pack, tiny_recipe
from torch import Tensor

from model.checkpoint import CheckpointState, read
from model.dataset import Pack
from model.distributed import World
from model.interfaces import Outputs
from model.milestone_scores import MilestoneScores, shared_passes
from model.trainer import Placement, Trainer

CPU = torch.device("cpu")
SCORE = "score/brightness_10"


@dataclass
class Brightness:
    """Scores images by their mean, and takes numbers from torch's own generator, as a network that is built may."""

    num_images: int = 10
    shapes: list[tuple[int, ...]] = field(default_factory=list)

    def features(self, images: Tensor) -> Tensor:
        torch.rand(3)
        self.shapes.append(tuple(images.shape))
        return images.double().mean((1, 2, 3))[:, None]

    def scores(self, features: Tensor) -> Mapping[str, float]:
        assert features.shape == (self.num_images, 1)
        return {SCORE: float(features.mean())}


@pytest.fixture(scope="module")
def pack(tmp_path_factory: pytest.TempPathFactory) -> Pack:
    return tiny_pack(tmp_path_factory.mktemp("pack"), 12)


@dataclass
class Attempt:
    """One attempt at a training, which stops when its function says so."""

    trainer: Trainer
    recorder: MemoryRecorder
    sink: LocalSink
    scorer: Brightness

    def state(self) -> CheckpointState:
        return read(self.sink.published[-1].directory)

    def scores(self) -> dict[int, float]:
        return {step: value for (key, step), value in self.recorder.values.items() if key == SCORE}


def attempt(pack: Pack, folder: Path, *, scored: bool = True, **training: object) -> Attempt:
    settings = {"network": {"dropout": 0.2}, "microbatch_images": 4, **({"score_every_steps": 2} if scored else {}), **training}
    recorder, sink, scorer = MemoryRecorder(), LocalSink(folder), Brightness()
    outputs = Outputs(recorder, sink)
    trainer = Trainer(tiny_recipe(**settings), pack, Placement(World(), CPU), outputs, scorer=scorer if scored else None)  # type: ignore[arg-type]
    return Attempt(trainer, recorder, sink, scorer)


def assert_same_tensors(a: CheckpointState, b: CheckpointState) -> None:
    assert a.facts == b.facts
    for group, tensors in a.tensors.items():
        for name, tensor in tensors.items():
            assert torch.equal(tensor, b.tensors[group][name]), f"{group}: {name}"


def test_scores_come_at_milestones_alone_and_change_no_weight(pack: Pack, tmp_path: Path) -> None:
    scored, unscored = attempt(pack, tmp_path / "scored"), attempt(pack, tmp_path / "unscored", scored=False)
    assert scored.trainer.run()
    assert unscored.trainer.run()
    assert sorted(scored.scores()) == [2, 4, 6]
    assert not unscored.scores()
    assert len(set(scored.scores().values())) == 3, "the weights move"
    assert {step for key, step in scored.recorder.values if key == "perf/score_s"} == {2, 4, 6}
    assert_same_tensors(scored.state(), unscored.state())


def test_the_run_is_the_same_run_with_and_without_scores() -> None:
    assert tiny_recipe(score_every_steps=5, score_images=64).identity("d" * 64) == tiny_recipe().identity("d" * 64)
    assert "score" not in tiny_recipe().model_dump_json(), "manifests that were stored before keep their bytes"


def test_only_one_pass_of_images_is_drawn_at_a_time(pack: Pack, tmp_path: Path) -> None:
    scored = attempt(pack, tmp_path, total_steps=2)
    scored.trainer.run()
    assert scored.scorer.shapes == [(4, 3, 16, 16)] * 3, "10 images in passes of microbatch_images"


def test_the_same_images_are_drawn_at_every_milestone(pack: Pack, tmp_path: Path) -> None:
    recorded = attempt(pack, tmp_path, total_steps=4)
    drawn: list[list[int]] = []
    draw = recorded.trainer.draw
    recorded.trainer.draw = lambda indices: drawn.append(indices.tolist()) or draw(indices)  # type: ignore[method-assign,func-returns-value]
    recorded.trainer.run()
    passes = [indices for indices in drawn if len(indices) == 4]
    assert passes == 2 * [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 9, 9]]


@pytest.mark.parametrize(("count", "size", "ranks"), [(10, 4, 1), (10, 4, 2), (2000, 128, 8), (3, 64, 4), (5, 1, 3)])
def test_ranks_share_the_images_in_equal_passes(count: int, size: int, ranks: int) -> None:
    shares = [list(shared_passes(count, size, World(rank=rank, size=ranks))) for rank in range(ranks)]
    assert len({tuple(map(len, share)) for share in shares}) == 1, "a collective needs equal shapes"
    assert all(len(indices) <= size for share in shares for indices in share)
    rows = torch.cat([torch.cat(parts) for parts in zip(*shares, strict=True)])
    assert rows[:count].tolist() == list(range(count))
    assert len(rows) < count + ranks * min(size, -(-count // ranks))


def test_a_stop_ends_the_drawing_after_a_pass_and_the_next_attempt_scores_that_step_once(pack: Pack, tmp_path: Path) -> None:
    undisturbed = attempt(pack, tmp_path / "undisturbed")
    undisturbed.trainer.run()
    first = attempt(pack, tmp_path / "stopped")
    asked = first.scorer.shapes

    assert not first.trainer.run(stop_requested=lambda: len(asked) >= 5)  # in the second pass of step 4
    assert first.trainer.step == 4
    assert sorted(first.scores()) == [2]
    assert len(asked) == 5
    stopped = first.trainer.snapshot()
    assert stopped.notes["score_due"] is True

    second = attempt(pack, tmp_path / "stopped")
    second.trainer.restore(stopped)
    assert not second.trainer.run(stop_requested=lambda: True), "a stop ends this one too, without another step"
    assert second.trainer.step == 4
    assert second.trainer.snapshot().notes["score_due"] is True
    assert not second.sink.published

    third = attempt(pack, tmp_path / "stopped")
    third.trainer.restore(stopped)
    assert third.trainer.run()
    assert first.scores() | third.scores() == undisturbed.scores()
    assert sorted(third.scores()) == [4, 6]
    assert "score_due" not in third.trainer.snapshot().notes
    assert_same_tensors(third.state(), undisturbed.state())


def test_a_stop_within_the_score_of_the_last_step_leaves_it_to_the_next_attempt(pack: Pack, tmp_path: Path) -> None:
    undisturbed = attempt(pack, tmp_path / "undisturbed")
    undisturbed.trainer.run()
    first = attempt(pack, tmp_path / "stopped")
    asked = first.scorer.shapes
    assert not first.trainer.run(stop_requested=lambda: len(asked) >= 8), "in the second pass of step 6, a score is left"
    assert (first.trainer.step, sorted(first.scores())) == (6, [2, 4])
    stopped = first.trainer.snapshot()

    second = attempt(pack, tmp_path / "stopped")
    second.trainer.restore(stopped)
    assert not second.trainer.run(stop_requested=lambda: True)
    assert not second.sink.published

    third = attempt(pack, tmp_path / "stopped")
    third.trainer.restore(stopped)
    assert third.trainer.run()
    assert first.scores() | third.scores() == undisturbed.scores()
    assert len(third.sink.published) == 1, "a checkpoint that says that nothing is due"
    assert "score_due" not in third.trainer.snapshot().notes
    assert_same_tensors(third.state(), undisturbed.state())

    longer = attempt(pack, tmp_path / "stopped", total_steps=8)
    longer.trainer.restore(stopped)
    assert longer.trainer.run()
    assert sorted(longer.scores()) == [6, 8]


@pytest.mark.parametrize(
    "other",
    [{"scored": False}, {"score_every_steps": 3}, {"scored": False, "score_every_steps": 2}],
    ids=["no scores", "other milestones", "no features"],
)
def test_a_due_score_ends_with_its_setting(pack: Pack, tmp_path: Path, other: dict[str, Any]) -> None:
    first = attempt(pack, tmp_path)
    asked = first.scorer.shapes
    assert not first.trainer.run(stop_requested=lambda: bool(asked))
    assert first.trainer.snapshot().notes["score_due"] is True, "that of step 2"

    second = attempt(pack, tmp_path, **other)
    second.trainer.restore(first.trainer.snapshot())
    assert not second.trainer.run(stop_requested=lambda: second.trainer.step >= 5)
    assert sorted(second.scores()) == ([3] if second.scorer.shapes else [])
    assert "score_due" not in second.trainer.snapshot().notes

    third = attempt(pack, tmp_path)
    third.trainer.restore(second.trainer.snapshot())
    assert third.trainer.run()
    assert sorted(third.scores()) == [6]


def test_a_killed_training_scores_the_steps_after_its_checkpoint_again_with_the_same_result(pack: Pack, tmp_path: Path) -> None:
    undisturbed = attempt(pack, tmp_path / "undisturbed", checkpoint_keep_every_steps=3)
    undisturbed.trainer.run()
    resumed = attempt(pack, tmp_path / "resumed")
    resumed.trainer.restore(read(undisturbed.sink.published[0].directory))
    assert resumed.trainer.step == 3
    resumed.trainer.run()
    assert resumed.scores() == {step: value for step, value in undisturbed.scores().items() if step > 3}


def test_time_of_scores_is_no_time_of_training(pack: Pack, tmp_path: Path) -> None:
    now = [0.0]
    recorder, scorer = MemoryRecorder(), Brightness()
    features = scorer.features
    scorer.features = lambda images: now.__setitem__(0, now[0] + 50) or features(images)  # type: ignore[method-assign,func-returns-value]
    recipe = tiny_recipe(log_every_steps=6, score_every_steps=2, microbatch_images=4)
    outputs = Outputs(recorder, LocalSink(tmp_path))
    trainer = Trainer(recipe, pack, Placement(World(), CPU), outputs, scorer=scorer, clock=lambda: now[0])
    trainer.run(on_step=lambda step, loss: now.__setitem__(0, now[0] + 1))
    assert recorder.values["perf/score_s", 2] == 150
    assert recorder.values["perf/images_per_s", 6] == pytest.approx(8.0)
    assert recorder.values["cost/cpu_rank_hours", 6] * 3600 == pytest.approx(6 + 300), "the devices are paid for all the same"


def test_the_progress_names_the_images() -> None:
    seen: list[tuple[int, int]] = []
    scores = MilestoneScores(Brightness(), 4, world=World(), device=CPU)
    drawn = scores.measure(
        lambda indices: torch.zeros(len(indices), 3, 2, 2, dtype=torch.uint8),
        stopped=lambda: False,
        on_images=lambda done, total: seen.append((done, total)),
    )
    assert drawn == {SCORE: 0.0}
    assert seen == [(4, 10), (8, 10), (10, 10)]


def test_a_metric_that_is_named_twice_is_refused() -> None:
    with pytest.raises(ValueError, match="names a metric twice"):
        tiny_recipe(score_every_steps=2, score_metrics=("mind", "mind"))
