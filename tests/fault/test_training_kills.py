"""Trainings that are killed, stopped, frozen and continued: the numbers must be those of the training that was left alone."""

import random
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from celebdit_testing import injections
from celebdit_testing.faults import Fault, fault_proxy
from celebdit_testing.ranks import Ranks, Training, ended, small_dataset, start_ranks
from celebdit_testing.recipes import tiny_recipe
from celebdit_testing.waiting import wait_until

from components.errors import BadInput, DataRefused, Preempted, RankLost, TemporaryFailure
from components.resources import ResourcesConfig
from components.storage import StoreUri
from model.checkpoint import CheckpointState, publish, read

pytestmark = [pytest.mark.fault, pytest.mark.slow]
STEPS = 120
Make = Callable[..., Training]


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory, rclone_endpoint: str) -> Make:
    """Make trainings of the same recipe on the same data, each with a storage location and a disk of its own."""
    folder = tmp_path_factory.mktemp("trainings")
    dataset = small_dataset(folder / "data", rclone_endpoint, StoreUri("bucket", folder.name))

    def new(name: str, **training: object) -> Training:
        values = {"total_steps": STEPS, "batch_images": 12, "log_every_steps": 1, "checkpoint_keep_every_steps": 12, **training}
        recipe = tiny_recipe(network={"dropout": 0.1, "augmentation": 0.3}, **values)
        return Training(folder / name, rclone_endpoint, StoreUri("bucket", folder.name) / name, recipe, dataset)

    return new


class Reference:
    """The training that was left alone, per number of ranks: its losses, exactly, and the digest of its last checkpoint."""

    def __init__(self, make: Make) -> None:
        self._make = make
        self._done: dict[int, tuple[dict[int, set[str]], str]] = {}

    def __call__(self, size: int = 2) -> tuple[dict[int, set[str]], str]:
        if size not in self._done:
            training = self._make(f"reference-{size}")
            finish(training, size)
            self._done[size] = (training.recorded_values(), training.final_digest())
        return self._done[size]


@pytest.fixture(scope="module")
def reference(make: Make) -> Reference:
    return Reference(make)


def finish(training: Training, size: int = 2) -> None:
    with ended(training.start(size)) as ranks:
        assert ranks.wait(120) == [0] * size, ranks.reason()


def assert_same(training: Training, expected: tuple[dict[int, set[str]], str]) -> None:
    losses, digest = expected
    assert training.recorded_values() == losses
    assert training.final_digest() == digest


def test_killed_at_random_steps_again_and_again_it_is_bitwise_the_same(make: Make, reference: Reference) -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    chance, training = random.Random(seed), make("killed", checkpoint_keep_every_steps=4)  # so that most tries get further
    for _ in range(8):
        with ended(training.start()) as ranks:
            training.advance(chance.randint(1, 10), ranks)
            ranks.signal(signal.SIGKILL)
            assert ranks.wait() == [-signal.SIGKILL] * 2
    finish(training)
    assert_same(training, reference())


def test_with_three_ranks_a_kill_changes_no_bit(make: Make, reference: Reference) -> None:
    """Three summands have an order, which DistributedDataParallel's buckets decide."""
    training = make("three")
    with ended(training.start(3)) as ranks:
        training.advance(30, ranks)
        ranks.signal(signal.SIGKILL)
    finish(training, 3)
    assert_same(training, reference(3))


def test_another_number_of_ranks_sees_the_same_images_transformations_times_and_noise(make: Make) -> None:
    """Dropout alone depends on the ranks, so it is off here."""
    losses = []
    for name, first, then in (("two", 2, 2), ("two-one", 2, 1)):
        training = make(name, total_steps=40)
        network = training.recipe.network.model_copy(update={"dropout": 0.0})
        training.recipe = training.recipe.model_copy(update={"network": network})
        with ended(training.start(first)) as ranks:
            training.advance(15, ranks)
            ranks.signal(signal.SIGKILL)
        finish(training, then)
        losses.append({step: [float.fromhex(value) for value in values] for step, values in training.recorded_values().items()})
    assert losses[0].keys() == losses[1].keys() == set(range(1, 41))
    for step, (value,) in losses[0].items():
        for other in losses[1][step]:
            assert other == pytest.approx(value, rel=1e-3), step


def test_sigterm_of_one_rank_stops_all_at_the_same_step_and_saves_it(make: Make, reference: Reference) -> None:
    training = make("sigterm")
    with ended(training.start()) as ranks:
        training.advance(20, ranks)
        began_s = time.monotonic()
        ranks.signal(signal.SIGTERM, rank=1)
        assert ranks.wait(20) == [Preempted.exit_code] * 2
        assert time.monotonic() - began_s < 20
        assert isinstance(ranks.reason(), Preempted)
    stopped_at = max(training.recorded_values())
    assert stopped_at < STEPS
    assert training.checkpoints.list_committed()[0].step == stopped_at
    finish(training)
    assert_same(training, reference())
    assert all(len(values) == 1 for values in training.recorded_values().values())
    assert training.lines() == STEPS, "a step was done twice"


def test_no_rank_ends_after_a_stop_before_its_checkpoint_is_in_object_storage(make: Make) -> None:
    """The end of one node's pod ends the job, and with it the node that uploads."""
    training = make("uploading", checkpoint_keep_every_steps=STEPS)
    with fault_proxy(training.endpoint) as proxy:
        training.environment = {"AWS_ENDPOINT_URL": proxy.endpoint}
        slow = Fault("slow", "PUT", path="checkpoints", delay_s=3.0)
        with proxy.injecting(slow), ended(training.start()) as ranks:
            training.advance(10, ranks)
            ranks.signal(signal.SIGTERM, rank=1)
            ranks.processes[1].join(30)
            assert ranks.processes[1].exitcode == Preempted.exit_code
            assert training.checkpoints.list_committed()[0].step == max(training.recorded_values())
            assert ranks.wait() == [Preempted.exit_code] * 2


def test_sigkill_right_after_sigterm_costs_at_most_an_interval(make: Make, reference: Reference) -> None:
    """The interval is 20 steps; a checkpoint that is being uploaded when the kill comes may cost as many again."""
    training = make("no-grace", checkpoint_keep_every_steps=20)
    with ended(training.start(prelude=injections.saving_takes_long_after_a_stop)) as ranks:
        training.advance(80, ranks)
        ranks.signal(signal.SIGTERM)
        wait_until((training.folder / "work" / "saving").exists, timeout_s=30, every_s=0.002)
        ranks.signal(signal.SIGKILL, rank=0)
        assert ranks.wait()[0] == -signal.SIGKILL, "it was killed while it saved"
    stopped_at = max(training.recorded_values())
    assert 80 <= stopped_at < STEPS
    kept = training.checkpoints.list_committed()[0].step
    assert 0 < stopped_at - kept <= 40
    finish(training)
    events = (training.folder / "events.jsonl").read_text()
    continued_from = int(re.findall(r"continuing from step (\d+)", events)[-1])
    assert kept <= continued_from <= stopped_at, "an upload that was under way may still have arrived"
    assert training.lines() - STEPS == stopped_at - continued_from, "the steps that were done twice"
    assert_same(training, reference())


def test_a_rank_that_is_killed_ends_the_others_which_say_what_happened(make: Make, reference: Reference) -> None:
    training = make("one-killed")
    with ended(training.start()) as ranks:
        training.advance(10, ranks)
        ranks.signal(signal.SIGKILL, rank=1)
        assert ranks.wait() == [RankLost.exit_code, -signal.SIGKILL]
        assert "another rank is gone" in ranks.reason().message
    finish(training)
    assert_same(training, reference())


def test_a_rank_that_hangs_is_noticed_within_the_timeout(make: Make, reference: Reference) -> None:
    training = make("frozen")
    training.resources = ResourcesConfig(device="cpu", rank_timeout_s=3.0)
    with ended(training.start()) as ranks:
        training.advance(10, ranks)
        began_s = time.monotonic()
        ranks.signal(signal.SIGSTOP, rank=1)
        ranks.processes[0].join(30)
        assert ranks.processes[0].exitcode == RankLost.exit_code
        assert 2.0 < time.monotonic() - began_s < 30
        assert "resources.rank_timeout_s" in ranks.reason().hint
    finish(training)
    assert_same(training, reference())


def test_two_machines_train_as_one_and_find_the_checkpoint_on_both(make: Make, reference: Reference, tmp_path: Path) -> None:
    training = make("machines")
    work_dirs = [str(tmp_path / "machine-0"), str(tmp_path / "machine-1")]
    for folder in work_dirs:
        Path(folder).mkdir()

    def start() -> Ranks:
        spec = training.spec()
        for folder in work_dirs:
            spec.dump(Path(folder) / "spec.json")
        environment = training.machine_environment()
        processes = start_ranks("spec.json", environment, size=2, nodes=2, work_dirs=work_dirs, log=tmp_path / "log.txt")
        return Ranks(processes, tmp_path)

    training.folder = tmp_path
    with ended(start()) as ranks:
        while not training.checkpoints.list_committed():
            assert all(process.is_alive() for process in ranks.processes), (tmp_path / "log.txt").read_text()
            time.sleep(0.05)
        ranks.signal(signal.SIGKILL)
        ranks.wait()
    with ended(start()) as ranks:
        assert ranks.wait(120) == [0, 0], (tmp_path / "log.txt").read_text()
    assert "continuing from step" in (tmp_path / "events.jsonl").read_text()
    assert training.final_digest() == reference()[1]


def test_a_loss_that_is_no_number_on_one_rank_stops_all_before_the_update(make: Make) -> None:
    training = make("poisoned")
    with ended(training.start(prelude=injections.infinite_loss_on_rank_1_at_step_17)) as ranks:
        assert ranks.wait() == [DataRefused.exit_code] * 2
        reason = ranks.reason()
    assert "not finite at step 16" in reason.message
    assert "optimizer.lr_peak" in reason.hint
    log = (training.folder / "log.txt").read_text()
    assert log.count("images with a non-finite loss") == 1, "the rank that saw it names the image"
    assert max(training.recorded_values()) == 16
    checkpoint = training.checkpoints.newest(training.folder / "kept")
    assert checkpoint is not None
    assert checkpoint[0].step <= 16
    assert all(tensor.isfinite().all() for group in read(checkpoint[0].directory).tensors.values() for tensor in group.values())


def test_a_full_disk_is_reported_with_the_space_needed_and_the_last_checkpoint_stays(make: Make, reference: Reference) -> None:
    training = make("disk", log_every_steps=10)  # a short journal, so that checkpoints are the first to find no room
    with ended(training.start(prelude=injections.disk_full_after_two_checkpoints)) as ranks:
        assert TemporaryFailure.exit_code in ranks.wait(120)
        reason = ranks.reason()
    assert "cannot be written" in reason.message
    assert "MB of disk" in reason.hint
    assert len(training.checkpoints.list_committed()) == 2
    assert not list((training.work / "checkpoints").glob(".staging*"))
    finish(training)
    assert training.final_digest() == reference()[1]


def test_memory_that_runs_out_gets_advice_in_numbers(make: Make) -> None:
    training = make("memory", batch_images=60_000)
    with ended(training.start(1, prelude=injections.little_memory)) as ranks:
        assert ranks.wait(120) == [BadInput.exit_code], (training.folder / "log.txt").read_text()
        reason = ranks.reason()
    assert "memory of cpu ran out" in reason.message
    assert "60000 images of 16 px per pass" in reason.message
    assert "training.microbatch_images=30000 (the same batch in 2 passes)" in reason.hint


def test_a_checkpoint_of_another_configuration_is_refused_field_by_field(make: Make, tmp_path: Path) -> None:
    training = make("foreign")
    other = make("foreign-other", seed=5)
    state = CheckpointState(step=8, tensors={"weights": {}}, facts={"identity": other.recipe.identity(other.dataset.digest)})
    training.checkpoints.upload(publish(state, tmp_path), "a000")
    with ended(training.start()) as ranks:
        assert ranks.wait() == [BadInput.exit_code] * 2
        assert "training.seed: 5 -> 0" in ranks.reason().message
    assert training.recorded_values() == {}


def test_damage_to_the_newest_checkpoint_costs_that_one_alone(make: Make, reference: Reference, rclone_folder: Path) -> None:
    training = make("damaged")
    with ended(training.start()) as ranks:
        training.advance(30, ranks)
        ranks.signal(signal.SIGTERM)
        ranks.wait()
    newest, before, *_ = training.checkpoints.list_committed()
    path = rclone_folder / newest.uri.bucket / newest.uri.key / "weights.safetensors"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))
    finish(training)
    events = (training.folder / "events.jsonl").read_text()
    assert "is corrupt and was quarantined" in events
    assert f"continuing from step {before.step} of" in events
    assert_same(training, reference())


def test_if_every_checkpoint_is_damaged_nothing_starts_from_the_beginning(make: Make, rclone_folder: Path) -> None:
    training = make("all-damaged")
    with ended(training.start()) as ranks:
        training.advance(30, ranks)
        # Of a run with one alone, training may begin again.
        wait_until(lambda: len({entry.step for entry in training.checkpoints.list_committed()}) > 1, timeout_s=60, every_s=0.05)
        ranks.signal(signal.SIGKILL)
    lines_before = training.lines()
    for entry in training.checkpoints.list_committed():
        (rclone_folder / entry.uri.bucket / entry.uri.key / "state.json").write_bytes(b"")
    with ended(training.start()) as ranks:
        assert DataRefused.exit_code in ranks.wait()
        assert "all of them are corrupt or incomplete" in ranks.reason().message
    assert training.lines() == lines_before
