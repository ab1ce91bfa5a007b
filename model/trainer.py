"""Training loop for one or many processes.

Promises: a run that was stopped and resumed equals an uninterrupted one, and another number of processes sees the same images,
times and noise (only dropout differs). The loop never waits for a network or a disk, and on CUDA it reads values back only every
`log_every_steps`. Metrics and checkpoints leave through `interfaces.py`; one step is in `training_step.py`.
"""

import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from jaxtyping import Int64, UInt8
from torch import Tensor

from model.averaged_network import averaged_network
from model.checkpoint import CheckpointState
from model.config import Recipe
from model.dataset import Pack
from model.denoiser import build_denoiser
from model.distillation_step import DistillationStep, without_dropout
from model.distributed import Agreement, World, gather_rows
from model.ema import EmaName
from model.ema_profiles import AveragedWeights, PowerProfile, profiles_of
from model.held_out import HeldOutLoss
from model.interfaces import Outputs, Scorer
from model.meter import Meter, hardware_of
from model.milestone_scores import MilestoneScores
from model.optim import build_optimizer, learning_rate
from model.profiling import StepProfiler
from model.sampling import denoiser_of, sample, to_uint8
from model.state import CheckpointedNetwork, TrainingState
from model.training_config import SCORE_DUE
from model.training_step import TrainingStep

NUM_SAMPLES = 16
"""Images in the sample grid of a run."""


@dataclass(frozen=True)
class Placement:
    """Where a trainer runs: its rank, its device, and what is known of the machine."""

    world: World
    device: torch.device
    timeout_s: float = 600.0
    """How long a rank waits for the others."""
    probe: Callable[[], Mapping[str, float]] = dict
    """Returns the system metrics of this machine; called at every metric point, with the same keys on every rank."""
    price_per_device_hour: float | None = None


class Trainer:
    """Network, optimiser and averages of one run on one process, and the loop that trains them."""

    def __init__(
        self,
        recipe: Recipe,
        pack: Pack,
        placement: Placement,
        outputs: Outputs,
        *,
        held_out: Pack | None = None,
        scorer: Scorer | None = None,
        teacher: Mapping[str, Tensor] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Build the network of `recipe` on the device of `placement`.

        The loss on `held_out` images is measured with each sample grid, except that of a student, whose output is a sample; `scorer` scores
        samples every `score_every_steps`. A recipe with `distill` needs the weights of its `teacher`, with which the network begins.
        """
        world, device = placement.world, placement.device
        self.recipe = recipe
        self.world = world
        self.device = device
        self.step = 0
        self._recorder = outputs.recorder
        self._sink = outputs.sink
        self._snapshots = outputs.snapshots
        self._probe = placement.probe
        self._clock = clock
        self._timeout_s = placement.timeout_s
        training = recipe.training
        assert (recipe.distill is None) == (teacher is None), "a student needs a teacher, and only a student has one"
        network = recipe.network if teacher is None else without_dropout(recipe.network)
        self.network = build_denoiser(network, seed=training.seed).to(device)
        if teacher is not None:
            self.network.load_state_dict(teacher)
        self.network.to(memory_format=torch.channels_last)
        self.network.recompute_activations = training.activation_checkpointing
        self.optimizer = build_optimizer(self.network, recipe.optimizer)
        self.averages = {profile.name: AveragedWeights(profile, list(self.network.parameters())) for profile in profiles_of(training)}
        hardware = hardware_of(recipe, device, price_per_device_hour=placement.price_per_device_hour)
        self._meter = Meter(world, hardware, batch_images=training.batch_images, device=device, clock=clock)
        self.training_step, auxiliary = self._build_step(pack, teacher)
        self._state = TrainingState(self.network, self.optimizer, self.averages, auxiliary)
        self._parameters = self._state.parameters
        self._held_out: HeldOutLoss | None = None
        if held_out is not None and training.held_out_images and teacher is None:
            self._held_out = HeldOutLoss(self.training_step.diffusion, held_out, pack, training.held_out_images, world=world, device=device)
        self._scores: MilestoneScores | None = None
        if scorer is not None and training.score_every_steps is not None:
            self._scores = MilestoneScores(scorer, training.batch_plan(world.size).per_pass, world=world, device=device)
        self._is_score_due = False
        """Whether a stop ended the scores of this step; those of the run that continues begin with them."""
        self._checks_every_step = device.type == "cpu"  # elsewhere the check makes the step wait for the device
        self._milestone_passed = False

    def _build_step(self, pack: Pack, teacher: Mapping[str, Tensor] | None) -> tuple[TrainingStep, CheckpointedNetwork | None]:
        """Return the training step, and the second network that it trains if there is a teacher."""
        parts = (self.recipe, pack, self.network, self.optimizer)
        if teacher is None:
            return TrainingStep(*parts, world=self.world, device=self.device, meter=self._meter, clock=self._clock), None
        step = DistillationStep(*parts, teacher, world=self.world, device=self.device, meter=self._meter, clock=self._clock)
        return step, CheckpointedNetwork(step.auxiliary, step.auxiliary_optimizer)

    def run(self, *, stop_requested: Callable[[], bool] = lambda: False, on_step: Callable[[int, float], None] | None = None) -> bool:
        """Train up to `total_steps`, or until some rank's `stop_requested` is true; return whether training is finished.

        It is not finished after a stop within the score of the last step: the run that continues makes that score.
        `on_step` is called with (step, loss of this rank) after each step; it makes every step wait for the device.

        Raises:
            NonFinite: on all ranks at the same step, before the weights are updated with it.
        """
        training = self.recipe.training
        self.training_step.wrap_network()
        agreement = Agreement(self.world, timeout_s=self._timeout_s)
        profiler = StepProfiler(training.profile_steps if self.world.is_first else 0, self._record_trace)
        stopped = False
        saved_s = self._clock()
        self._meter.start()
        self.network.train()

        def agree_to_stop() -> bool:
            return agreement.exchange(raised=stop_requested())

        if self._is_score_due:
            stopped = self._record_scores(agree_to_stop)
            if not stopped and self.step >= training.total_steps:
                self._save(wait=True)  # no step follows that would store that nothing is due any more
        while self.step < training.total_steps and not stopped:
            loss = self._advance()
            profiler.step_done()
            if on_step is not None:
                on_step(self.step, float(loss))
            last = self.step == training.total_steps
            if self._checks_every_step or self.step % training.log_every_steps == 0 or last:
                self.training_step.raise_if_nonfinite()
            if self.step % training.log_every_steps == 0 or last:
                self._log()
            if self.step % training.sample_every_steps == 0 or last:
                self._record_samples()
            scores_stopped = training.is_milestone(self.step) and self._record_scores(agree_to_stop)
            self._save_ema_snapshot(last=last)
            stopped = agree_to_stop() or scores_stopped
            if last or stopped:
                self._save(wait=True)
            elif self._is_checkpoint_due(saved_s) and self._sink.ready():
                self._save(wait=False)
                saved_s = self._clock()
        self._drain_ema_snapshots(stopped=stopped)
        profiler.close()
        return self.step >= training.total_steps and not self._is_score_due

    def _advance(self) -> Tensor:
        """Train one step, update the averages, and return the mean loss of this rank's images."""
        loss = self.training_step.run(self.step)
        self.step += 1
        for average in self.averages.values():
            average.update(self._parameters, self.step)
        return loss

    def _is_checkpoint_due(self, saved_s: float) -> bool:
        """Return whether a checkpoint is due: an interval of time or a milestone has passed since the last one."""
        training = self.recipe.training
        every = training.checkpoint_keep_every_steps
        self._milestone_passed |= every is not None and self.step % every == 0
        return self._milestone_passed or self._clock() - saved_s >= training.checkpoint_every_s

    def _log(self) -> None:
        training = self.recipe.training
        values = {"train/lr": learning_rate(self.recipe.optimizer, self.step - 1), **self._meter.read(), **self._system_metrics()}
        if self.world.is_first:
            self._recorder.metrics(self.step, values)
            text = f"steps, loss {values['train/loss']:.4f}, {values['perf/images_per_s']:.0f} images/s"
            self._recorder.progress(self.step, training.total_steps, text)

    def _system_metrics(self) -> dict[str, float]:
        """Return the system metrics of the first rank of every machine, under the machine's number."""
        facts = self._probe()
        if not facts:
            return {}
        rows = gather_rows(torch.tensor([list(facts.values())], dtype=torch.float64, device=self.device), self.world).tolist()
        firsts = rows[:: self.world.local_size]
        return {f"system/node_{node}/{name}": value for node, row in enumerate(firsts) for name, value in zip(facts, row, strict=True)}

    def _record_trace(self, write: Callable[[Path], None]) -> None:
        self._recorder.trace(self.step, write)

    def _record_samples(self) -> None:
        """Draw the fixed samples, divided over the ranks, measure the held-out loss, and record both, outside of training time."""
        start_s = self._clock()
        share = -(-NUM_SAMPLES // self.world.size)
        indices = torch.arange(self.world.rank * share, (self.world.rank + 1) * share, device=self.device)
        images = gather_rows(self.draw(indices), self.world)[:NUM_SAMPLES]
        losses = {} if self._held_out is None else self._measure_held_out(self._held_out)
        if self.world.is_first:
            self._recorder.samples(self.step, images.cpu())
            self._recorder.metrics(self.step, losses)
        self._meter.exclude(self._clock() - start_s)

    def _record_scores(self, stopped: Callable[[], bool]) -> bool:
        """Score samples and record the scores, outside of training time; return whether a stop ended it before."""
        if self._scores is None:
            return False
        start_s, total = self._clock(), self.recipe.training.total_steps

        def on_images(done: int, count: int) -> None:
            if self.world.is_first:
                self._recorder.progress(self.step, total, f"steps, scoring: {done} of {count} images")

        values = self._scores.measure(self.draw, stopped=stopped, on_images=on_images)
        self._is_score_due = values is None
        elapsed_s = self._clock() - start_s
        if values is not None and self.world.is_first:
            self._recorder.metrics(self.step, {**values, "perf/score_s": elapsed_s})
        self._meter.exclude(elapsed_s)
        return self._is_score_due

    def draw(self, indices: Int64[Tensor, " b"]) -> UInt8[Tensor, "b 3 h w"]:
        """Sample the images with `indices` from the averaged weights that `sampling.ema` names."""
        sampling = self.recipe.sampling
        with self._averaged_network() as network:
            denoise = denoiser_of(network, self.training_step.diffusion, clip_x=sampling.clip_x)
            return to_uint8(sample(denoise, self.training_step.diffusion.path, sampling, indices, self.recipe.network.image_px))

    def _measure_held_out(self, held_out: HeldOutLoss) -> dict[str, float]:
        with self._averaged_network() as network, torch.inference_mode():
            return held_out.measure(network)

    def _averaged_network(self) -> AbstractContextManager[Callable[[Tensor, Tensor], Tensor]]:
        """Return the network with the averaged weights that `sampling.ema` names."""
        name = EmaName(self.recipe.sampling.ema)
        weights = self._parameters if name.is_raw else self.averages[name].tensors
        return averaged_network(self.network, dict(zip(self._state.names, weights, strict=True)), self.recipe.training, self.device)

    @property
    def checkpoint_bytes(self) -> int:
        """The size of a checkpoint: weights and two moments of each network that is trained, and averages."""
        networks = 1 if self.recipe.distill is None else 2
        return sum(tensor.numel() * tensor.element_size() for tensor in self._parameters) * (3 * networks + len(self.averages))

    def _save_ema_snapshot(self, *, last: bool) -> None:
        """Store the power-function averages when they are due and at the end, for post-hoc recombination."""
        every = self.recipe.training.ema_snapshot_every_steps
        if every is None or self._snapshots is None or not self.world.is_first:
            return
        if (last or self.step % every == 0) and not self._is_nonfinite():
            self._snapshots.submit(self.averages_state)

    def _drain_ema_snapshots(self, *, stopped: bool) -> None:
        """Wait at the end for the EMA snapshots, after the last checkpoint, which matters more; a stop does not wait for them."""
        if self._snapshots is not None and self.world.is_first and not stopped:
            self._snapshots.drain()

    def averages_state(self) -> CheckpointState:
        """Copy the power-function averages to host memory."""
        power_averages = {name: average for name, average in self.averages.items() if isinstance(average.profile, PowerProfile)}
        return CheckpointState(step=self.step, tensors=self._state.copy_averages(power_averages), facts={})

    def _save(self, *, wait: bool) -> None:
        """Submit a snapshot to the sink on the first rank; with `wait`, return once all snapshots are durable."""
        if not self.world.is_first:
            return
        if not self._is_nonfinite():
            self._sink.submit(self.snapshot)
            self._milestone_passed = False
        if wait:
            self._sink.drain()

    def _is_nonfinite(self) -> bool:
        """Return whether the state includes a non-finite step, at which the next metric point will raise: it must not be stored."""
        return not self._checks_every_step and self.training_step.first_nonfinite() is not None

    def snapshot(self) -> CheckpointState:
        """Copy the whole state to host memory."""
        facts = {"window": self._meter.facts(), "images_seen": self.step * self.recipe.training.batch_images}
        state = self._state.copy_to_host(self.step, facts)
        due = {SCORE_DUE: True} if self._is_score_due else {}
        return replace(state, notes={"device_hours": self._meter.device_hours, **due})

    def restore(self, state: CheckpointState) -> None:
        """Continue from `state`.

        Raises:
            StateMismatch: naming the tensor that is missing, unexpected or of another shape.
        """
        self._state.restore(state)
        self._meter.restore(state.facts["window"], device_hours=float(state.notes.get("device_hours", 0.0)))
        self._is_score_due = self._scores is not None and self.recipe.training.is_score_due(state.step, state.notes)
        self.step = state.step
