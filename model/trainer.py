"""The training loop: from a state to the next, as often as asked, on one process or many.

Promises: all random numbers of a step are functions of (seed, step, position in the global batch), so a run that was stopped and resumed
is the run that was not, and another number of processes sees the same images, times and noise (only dropout differs). The loop never waits
for a network or a disk, and on CUDA it reads a number back only every `log_every_steps`. Where state is stored and who watches is not
known here: see `model/interfaces.py`.
"""

import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from model import rng
from model.batching import plan_batch
from model.checkpoint import CheckpointState
from model.config import Recipe, TrainingConfig
from model.dataset import BatchReader, Pack, indices_for_step
from model.denoiser import build_denoiser
from model.diffusion import Diffusion, build_diffusion
from model.distributed import Agreement, World, gathered
from model.ema import AveragedWeights, ClassicProfile, PowerProfile, Profile
from model.guard import Guard, NonFinite, contagious_sum
from model.interfaces import CheckpointSink, Recorder
from model.meter import Meter, hardware_of
from model.optim import build_optimizer, clip_gradients, guarded_step, learning_rate, set_learning_rate
from model.profiling import StepProfiler
from model.sampling import denoiser_of, sample, to_uint8
from model.state import TrainingState

NUM_SAMPLES = 16
"""Images in the grid that a run shows of itself."""


class Trainer:
    """Owns network, optimiser and averages of one run on one process, and moves them forward."""

    def __init__(
        self,
        recipe: Recipe,
        pack: Pack,
        *,
        world: World,
        device: torch.device,
        recorder: Recorder,
        sink: CheckpointSink,
        snapshots: CheckpointSink | None = None,
        probe: Callable[[], Mapping[str, float]] = dict,
        price_per_device_hour: float | None = None,
        timeout_s: float = 600.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Build the network of `recipe` on `device`.

        `probe` says how busy this machine is; it is asked at every metric point and names the same facts on every rank.
        """
        self.recipe = recipe
        self.world = world
        self.device = device
        self.step = 0
        self._pack = pack
        self._recorder = recorder
        self._sink = sink
        self._snapshots = snapshots
        self._probe = probe
        self._clock = clock
        self._timeout_s = timeout_s
        training = recipe.training
        self._plan = plan_batch(training.batch_images, world.size, training.microbatch_images)
        self.network = build_denoiser(recipe.network, seed=training.seed).to(device)
        self.network.to(memory_format=torch.channels_last)
        self.network.recompute_activations = training.activation_checkpointing
        self.diffusion: Diffusion = build_diffusion(recipe.diffusion)
        self.optimizer = build_optimizer(self.network, recipe.optimizer)
        self.averages = {profile.name: AveragedWeights(profile, list(self.network.parameters())) for profile in profiles_of(training)}
        self._state = TrainingState(self.network, self.optimizer, self.averages)
        self._parameters = self._state.parameters
        self._reader = BatchReader(pack, device, on_device=training.data_on_device)
        hardware = hardware_of(recipe.network, training, device, price_per_device_hour=price_per_device_hour)
        self._meter = Meter(world, hardware, batch_images=training.batch_images, device=device, clock=clock)
        self._guard = Guard(self._plan.per_rank, device)
        self._looks_at_each_step = device.type == "cpu"  # elsewhere looking makes the step wait for the device
        self._forward: nn.Module = self.network
        self._milestone_passed = False

    def run(self, *, stop_asked: Callable[[], bool] = lambda: False, on_step: Callable[[int, float], None] | None = None) -> bool:
        """Train up to `total_steps`, or until some rank's `stop_asked` is true; return whether training is finished.

        `on_step` hears (step, loss of this rank) after each step; it makes every step wait for the device.

        Raises:
            NonFinite: on all ranks at the same step, before the weights take it in.
        """
        training = self.recipe.training
        self._wrap()
        agreement = Agreement(self.world, timeout_s=self._timeout_s)
        profiler = StepProfiler(training.profile_steps if self.world.is_first else 0, self._record_trace)
        stopped = False
        saved_s = self._clock()
        self._meter.start()
        self.network.train()
        while self.step < training.total_steps and not stopped:
            loss = self._train_step()
            profiler.step_done()
            if on_step is not None:
                on_step(self.step, float(loss))
            last = self.step == training.total_steps
            if self._looks_at_each_step or self.step % training.log_every_steps == 0 or last:
                self._refuse_poison()
            if self.step % training.log_every_steps == 0 or last:
                self._log()
            if self.step % training.sample_every_steps == 0 or last:
                self._show_samples()
            self._keep_averages(last=last)
            stopped = agreement.exchange(raised=stop_asked())
            if last or stopped:
                self._save(wait=True)
            elif self._is_due(saved_s) and self._sink.ready():
                self._save(wait=False)
                saved_s = self._clock()
        profiler.close()
        return self.step >= training.total_steps

    def _is_due(self, saved_s: float) -> bool:
        """Say whether a checkpoint is due: an interval of time has passed, or a milestone since the last one."""
        training = self.recipe.training
        every = training.checkpoint_keep_every_steps
        self._milestone_passed |= every is not None and self.step % every == 0
        return self._milestone_passed or self._clock() - saved_s >= training.checkpoint_every_s

    def _wrap(self) -> None:
        """Make the forward pass distributed and compiled, as asked."""
        training = self.recipe.training
        # Compiled inside the wrapper, so that gradient accumulation can still skip the wrapper's synchronisation.
        forward = cast(nn.Module, torch.compile(self.network, fullgraph=True)) if training.compile else self.network
        if self.world.size > 1:
            ids = [self.device.index] if self.device.type == "cuda" else None
            # A static graph cannot begin inside no_sync (torch 2.15: INTERNAL ASSERT in the reducer), so accumulation goes without.
            forward = DistributedDataParallel(
                forward, device_ids=ids, forward_sync_buffers=False, gradient_as_bucket_view=True, static_graph=self._plan.passes == 1
            )
        self._forward = forward
        if self.world.size > 1:
            self._settle_buckets()

    def _settle_buckets(self) -> None:
        """Run two passes that change nothing.

        DistributedDataParallel sorts its gradient buckets anew after the first pass. With three ranks or more the order of a sum depends on
        the buckets, so a run that was resumed would add up its first gradients in another order than the run that was not.
        """
        side, images = self.recipe.network.image_px, self._plan.per_pass
        x = torch.zeros(images, 3, side, side, device=self.device).contiguous(memory_format=torch.channels_last)
        for _ in range(2):
            with self._autocast():
                torch.autograd.backward(self._forward(x, torch.zeros(images, device=self.device)).sum())
        self.optimizer.zero_grad(set_to_none=False)

    def _train_step(self) -> Float[Tensor, ""]:
        """Move the state one step forward and return the mean loss of this rank's images."""
        set_learning_rate(self.optimizer, learning_rate(self.recipe.optimizer, self.step))
        self.optimizer.zero_grad(set_to_none=self._plan.passes == 1 and self.world.size == 1)
        losses = torch.cat([self._backward(pass_index) for pass_index in range(self._plan.passes)])
        norm = clip_gradients(self._parameters, self.recipe.optimizer.clip_norm)
        self._guard.look(self.step, losses, norm)
        guarded_step(self.optimizer, self._guard.poisoned)
        self.step += 1
        for average in self.averages.values():
            average.update(self._parameters, self.step)
        mean = losses.mean()
        self._meter.step(mean, norm)
        return mean

    def _backward(self, pass_index: int) -> Float[Tensor, " b"]:
        """Add one pass's share to the gradients and return its losses, detached."""
        training, step = self.recipe.training, self.step
        positions = self._plan.slice_of(self.world.rank, pass_index)
        began = self._clock()
        images = self._reader.read(self._indices(step, positions), then=self._following(pass_index))
        self._meter.waited(self._clock() - began)
        ids = torch.arange(positions.start, positions.stop, device=self.device)
        if training.horizontal_flip:
            mirrored = rng.coin(training.seed, rng.Stream.FLIP, step, ids)
            images = torch.where(mirrored[:, None, None, None], images.flip(-1), images)
        x = images.to(torch.float32) / 127.5 - 1
        noise = rng.normal(training.seed, rng.Stream.NOISE, step, ids, tuple(x.shape[1:])).contiguous(memory_format=torch.channels_last)
        t = self.diffusion.draw_times(rng.uniform(training.seed, rng.Stream.TIME, step, ids, 1)[:, 0])
        if self.recipe.network.dropout > 0:
            torch.manual_seed(_dropout_seed(training.seed, step, positions.start))
        with self._no_sync(pass_index), self._autocast():
            output = self._forward(self.diffusion.noisy(x, noise, t), self.diffusion.path.timestep(t).float())
            losses = self.diffusion.losses(output, x, noise, t)
            torch.autograd.backward(contagious_sum(losses) / self._plan.per_rank)
        return losses.detach()

    def _indices(self, step: int, positions: slice) -> Any:
        training = self.recipe.training
        drawn = indices_for_step(seed=training.seed, step=step, batch_images=training.batch_images, num_images=len(self._pack))
        return drawn[positions]

    def _following(self, pass_index: int) -> Any:
        """Return the images of the pass after this one, or None at the very end."""
        if pass_index + 1 < self._plan.passes:
            return self._indices(self.step, self._plan.slice_of(self.world.rank, pass_index + 1))
        if self.step + 1 >= self.recipe.training.total_steps:
            return None
        return self._indices(self.step + 1, self._plan.slice_of(self.world.rank, 0))

    def _no_sync(self, pass_index: int) -> AbstractContextManager[None]:
        waits = pass_index + 1 < self._plan.passes and isinstance(self._forward, DistributedDataParallel)
        return self._forward.no_sync() if waits else nullcontext()  # type: ignore[operator]

    def _autocast(self) -> AbstractContextManager[None]:
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.recipe.training.precision == "bfloat16")

    def _refuse_poison(self) -> None:
        bad = self._guard.first_bad()
        if bad is not None:
            step, positions = bad
            of_rank = slice(self.world.rank * self._plan.per_rank, (self.world.rank + 1) * self._plan.per_rank)
            raise NonFinite(step, [self._pack.keys[i] for i in self._indices(step, of_rank)[positions]])

    def _log(self) -> None:
        training = self.recipe.training
        values = {"train/lr": learning_rate(self.recipe.optimizer, self.step - 1), **self._meter.read(), **self._busyness()}
        if self.world.is_first:
            self._recorder.metrics(self.step, values)
            told = f"loss {values['train/loss']:.4f}, {values['perf/images_per_s']:.0f} images/s"
            self._recorder.progress(self.step, training.total_steps, told)

    def _busyness(self) -> dict[str, float]:
        """Return what the probe of the first rank of every machine says, under the machine's number."""
        facts = self._probe()
        if not facts:
            return {}
        rows = gathered(torch.tensor([list(facts.values())], dtype=torch.float64, device=self.device), self.world).tolist()
        firsts = rows[:: self.world.local_size]
        return {f"system/node_{node}/{name}": value for node, row in enumerate(firsts) for name, value in zip(facts, row, strict=True)}

    def _record_trace(self, write: Callable[[Path], None]) -> None:
        self._recorder.trace(self.step, write)

    def _show_samples(self) -> None:
        """Draw the fixed samples, shared out over the ranks, and record them; the time it takes does not count as training time."""
        began = self._clock()
        share = -(-NUM_SAMPLES // self.world.size)
        indices = torch.arange(self.world.rank * share, (self.world.rank + 1) * share, device=self.device)
        images = gathered(self.draw(indices), self.world)[:NUM_SAMPLES]
        if self.world.is_first:
            self._recorder.samples(self.step, images.cpu())
        self._meter.excluded(self._clock() - began)

    def draw(self, indices: Int64[Tensor, " b"]) -> UInt8[Tensor, "b 3 h w"]:
        """Sample the images with `indices` from the averaged weights that `sampling.ema` names."""
        sampling = self.recipe.sampling
        weights = self._parameters if sampling.ema == "none" else self.averages[sampling.ema].tensors
        named = dict(zip(self._state.names, weights, strict=True))

        def network(x: Tensor, t: Tensor) -> Tensor:
            with self._autocast():
                return torch.func.functional_call(self.network, named, (x, t))

        self.network.eval()
        try:
            denoise = denoiser_of(network, self.diffusion, clip_x=sampling.clip_x)
            return to_uint8(sample(denoise, self.diffusion.path, sampling, indices, self.recipe.network.image_px))
        finally:
            self.network.train()

    def _keep_averages(self, *, last: bool) -> None:
        """Store the power-function averages when one is due and at the end, for `model/ema.py` to recombine after training."""
        every = self.recipe.training.ema_snapshot_every_steps
        if every is None or self._snapshots is None or not self.world.is_first:
            return
        if (last or self.step % every == 0) and not self._is_poisoned():
            self._snapshots.submit(self.averages_state)
        if last:
            self._snapshots.drain()

    def averages_state(self) -> CheckpointState:
        """Copy the power-function averages to host memory."""
        kept = {name: average for name, average in self.averages.items() if isinstance(average.profile, PowerProfile)}
        return CheckpointState(step=self.step, tensors=self._state.take_averages(kept), facts={})

    def _save(self, *, wait: bool) -> None:
        """Hand a snapshot to the sink on the first rank; with `wait` it is durable, with all before it, when this returns."""
        if not self.world.is_first:
            return
        if not self._is_poisoned():
            self._sink.submit(self.snapshot)
            self._milestone_passed = False
        if wait:
            self._sink.drain()

    def _is_poisoned(self) -> bool:
        """Return whether the state took part in a bad step that the next metric point will refuse, on all ranks: it is not to be stored."""
        return not self._looks_at_each_step and self._guard.first_bad() is not None

    def snapshot(self) -> CheckpointState:
        """Copy the whole state to host memory."""
        facts = {"window": self._meter.facts(), "images_seen": self.step * self.recipe.training.batch_images}
        state = self._state.take(self.step, facts)
        return replace(state, notes={"device_hours": self._meter.device_hours})

    def restore(self, state: CheckpointState) -> None:
        """Continue from `state`.

        Raises:
            StateMismatch: naming the tensor that is missing, unexpected or of another shape.
        """
        self._state.put_back(state)
        self._meter.restore(state.facts["window"], device_hours=float(state.notes.get("device_hours", 0.0)))
        self.step = state.step


def profiles_of(training: TrainingConfig) -> list[Profile]:
    """Return the averages of the weights that `training` asks for."""
    profiles: list[Profile] = [PowerProfile(width) for width in training.ema_sigma_rel]
    if training.ema_decay is not None:
        profiles.append(ClassicProfile(training.ema_decay))
    return profiles


def _dropout_seed(seed: int, step: int, position: int) -> int:
    drawn = rng.words(seed, rng.Stream.DROPOUT, step, torch.tensor([position]), 2)[0].tolist()
    return int(drawn[0] << 31 ^ drawn[1])
