"""The training loop: from a state to the next, as often as asked, on one process or many.

Promises: all random numbers of a step are functions of (seed, step, position in the global batch), so a run that was stopped and resumed
is the run that was not, and another number of processes sees the same images, times and noise (only dropout differs). The loop never waits
for a network or a disk, and on CUDA it reads a number back only every `log_every_steps`. Where state is stored and who watches is not
known here: see `model/protocols.py`.
"""

import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from model import rng
from model.batching import plan_batch
from model.checkpoint import CheckpointState
from model.config import DiffusionConfig, NetworkConfig, OptimizerConfig, SamplingConfig, TrainingConfig
from model.dataset import BatchReader, Pack, indices_for_step
from model.denoiser import Denoiser, build_denoiser
from model.diffusion import Diffusion, build_diffusion
from model.distributed import Agreement, World, gathered, mean_over_ranks
from model.ema import AveragedWeights, ClassicProfile, PowerProfile, Profile
from model.optim import build_optimizer, clip_gradients, guarded_step, learning_rate, set_learning_rate
from model.protocols import CheckpointSink, Recorder
from model.sampling import denoiser_of, sample, to_uint8

NUM_SAMPLES = 16
"""Images in the grid that a run shows of itself."""


@dataclass(frozen=True)
class Recipe:
    """Everything that the numbers of a run depend on, besides its data."""

    network: NetworkConfig
    diffusion: DiffusionConfig
    optimizer: OptimizerConfig
    training: TrainingConfig
    sampling: SamplingConfig


class NonFinite(ArithmeticError):
    """The loss or a gradient stopped being a number. The weights are still those of the step before."""

    def __init__(self, step: int, keys: list[str]) -> None:
        self.step = step
        self.keys = keys
        named = f"; images with a non-finite loss on this process: {', '.join(keys)}" if keys else ""
        super().__init__(f"loss or gradient is not finite at step {step}{named}")


class StateMismatch(ValueError):
    """A saved state does not fit the network that it is loaded into."""


@dataclass
class _Window:
    """What happened since the last metric point. Part of the state, so that a resumed run reports the same means."""

    losses: list[Tensor] = field(default_factory=list)
    norms: list[Tensor] = field(default_factory=list)
    began_s: float = 0.0
    waited_s: float = 0.0
    steps_timed: int = 0


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
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.recipe = recipe
        self.world = world
        self.device = device
        self.step = 0
        self._pack = pack
        self._recorder = recorder
        self._sink = sink
        self._clock = clock
        training = recipe.training
        self._plan = plan_batch(training.batch_images, world.size, training.microbatch_images)
        self.network: Denoiser = build_denoiser(recipe.network, seed=training.seed).to(device)
        self.network.to(memory_format=torch.channels_last)
        self.network.core.checkpoint_activations = training.activation_checkpointing
        self.diffusion: Diffusion = build_diffusion(recipe.diffusion)
        self.optimizer = build_optimizer(self.network, recipe.optimizer)
        self._names = [name for name, _ in self.network.named_parameters()]
        self._parameters = list(self.network.parameters())
        self.averages = {profile.name: AveragedWeights(profile, self._parameters) for profile in profiles_of(training)}
        self._reader = BatchReader(pack, device, on_device=training.data_on_device)
        self._window = _Window()
        self._poisoned = torch.zeros((), device=device)
        self._forward: nn.Module = self.network
        self._agreement: Agreement | None = None

    def run(self, *, stop_asked: Callable[[], bool] = lambda: False, on_step: Callable[[int, float], None] | None = None) -> bool:
        """Train up to `total_steps`, or until some rank's `stop_asked` is true; return whether training is finished.

        `on_step` hears (step, loss of this rank) after each step; it makes every step wait for the device.

        Raises:
            NonFinite: on all ranks at the same step, before the weights take it in.
        """
        training = self.recipe.training
        self._wrap()
        stopped = False
        saved_s = self._clock()
        self._window.began_s = saved_s
        self.network.train()
        while self.step < training.total_steps and not stopped:
            loss = self._train_step()
            if on_step is not None:
                on_step(self.step, float(loss))
            last = self.step == training.total_steps
            if self.device.type == "cpu" or self.step % training.log_every_steps == 0 or last:
                self._refuse_poison()
            if self.step % training.log_every_steps == 0 or last:
                self._log()
            if self.step % training.sample_every_steps == 0 or last:
                self._show_samples()
            assert self._agreement is not None
            stopped = self._agreement.exchange(raised=stop_asked())
            due = last or stopped or self._clock() - saved_s >= training.checkpoint_every_s
            if due and self.world.is_first and (last or stopped or self._sink.ready()):
                self._save(wait=last or stopped)
                saved_s = self._clock()
        return self.step >= training.total_steps

    def _wrap(self) -> None:
        training = self.recipe.training
        forward: nn.Module = self.network
        if self.world.size > 1:
            ids = [self.device.index] if self.device.type == "cuda" else None
            forward = DistributedDataParallel(
                forward, device_ids=ids, broadcast_buffers=False, gradient_as_bucket_view=True, static_graph=self._plan.passes == 1
            )
        self._forward = cast(nn.Module, torch.compile(forward)) if training.compile else forward
        self._agreement = Agreement(self.world, timeout_s=600)

    def _train_step(self) -> Float[Tensor, ""]:
        """Move the state one step forward and return the mean loss of this rank's images."""
        set_learning_rate(self.optimizer, learning_rate(self.recipe.optimizer, self.step))
        self.optimizer.zero_grad(set_to_none=self._plan.passes == 1 and self.world.size == 1)
        losses = torch.cat([self._backward(pass_index) for pass_index in range(self._plan.passes)])
        norm = clip_gradients(self._parameters, self.recipe.optimizer.clip_norm)
        self._poisoned = torch.maximum(self._poisoned, (~(torch.isfinite(norm) & torch.isfinite(losses).all())).float())
        self._last_losses = losses
        guarded_step(self.optimizer, self._poisoned)
        self.step += 1
        for average in self.averages.values():
            average.update(self._parameters, self.step)
        mean = losses.mean()
        self._window.losses.append(mean)
        self._window.norms.append(norm)
        self._window.steps_timed += 1
        return mean

    def _backward(self, pass_index: int) -> Float[Tensor, " b"]:
        """Add one pass's share to the gradients and return its losses, detached."""
        training, step = self.recipe.training, self.step
        positions = self._plan.slice_of(self.world.rank, pass_index)
        began = self._clock()
        images = self._reader.read(self._indices(step, positions), then=self._following(pass_index))
        self._window.waited_s += self._clock() - began
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
            torch.autograd.backward(losses.sum() / self._plan.per_rank)
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
        if float(self._poisoned) == 0:
            return
        step = self.step - 1
        indices = self._indices(step, slice(self.world.rank * self._plan.per_rank, (self.world.rank + 1) * self._plan.per_rank))
        bad = (~torch.isfinite(self._last_losses)).cpu().numpy()
        raise NonFinite(step, [self._pack.keys[i] for i in indices[bad]])

    def _log(self) -> None:
        window, training = self._window, self.recipe.training
        losses = mean_over_ranks(torch.stack(window.losses), self.world)
        now = self._clock()
        elapsed = max(now - window.began_s, 1e-9)
        values = {
            "train/loss": float(losses.mean()),
            "train/grad_norm": float(torch.stack(window.norms).mean()),
            "train/lr": learning_rate(self.recipe.optimizer, self.step - 1),
            "perf/images_per_s": window.steps_timed * training.batch_images / elapsed,
            "perf/data_wait_share": window.waited_s / elapsed,
        }
        if self.device.type == "cuda":
            values["perf/gpu_mem_gb"] = torch.cuda.max_memory_allocated(self.device) / 1e9
        self._window = _Window(began_s=now)
        if self.world.is_first:
            self._recorder.metrics(self.step, values)
            self._recorder.progress(
                self.step, training.total_steps, f"loss {values['train/loss']:.4f}, {values['perf/images_per_s']:.0f} images/s"
            )

    def _show_samples(self) -> None:
        """Draw the fixed samples, shared out over the ranks, and record them; the time it takes does not count as training time."""
        began = self._clock()
        share = -(-NUM_SAMPLES // self.world.size)
        indices = torch.arange(self.world.rank * share, (self.world.rank + 1) * share, device=self.device)
        images = gathered(self.draw(indices), self.world)[:NUM_SAMPLES]
        if self.world.is_first:
            self._recorder.samples(self.step, images.cpu())
        self._window.began_s += self._clock() - began

    def draw(self, indices: Int64[Tensor, " b"]) -> UInt8[Tensor, "b 3 h w"]:
        """Sample the images with `indices` from the averaged weights that `sampling.ema` names."""
        sampling = self.recipe.sampling
        weights = self._parameters if sampling.ema == "none" else self.averages[sampling.ema].tensors
        named = dict(zip(self._names, weights, strict=True))

        def network(x: Tensor, t: Tensor) -> Tensor:
            with self._autocast():
                return torch.func.functional_call(self.network, named, (x, t))

        self.network.eval()
        try:
            denoise = denoiser_of(network, self.diffusion, clip_x=sampling.clip_x)
            return to_uint8(sample(denoise, self.diffusion.path, sampling, indices, self.recipe.network.image_px))
        finally:
            self.network.train()

    def _save(self, *, wait: bool) -> None:
        if wait:
            self._sink.drain()
        self._sink.submit(self.snapshot)
        if wait:
            self._sink.drain()

    def snapshot(self) -> CheckpointState:
        """Copy the whole state to host memory."""
        moments: dict[str, Tensor] = {}
        for name, parameter in zip(self._names, self._parameters, strict=True):
            state = self.optimizer.state.get(parameter, {})
            moments |= {f"{kind}.{name}": state[kind] for kind in ("exp_avg", "exp_avg_sq") if kind in state}
        groups: dict[str, Mapping[str, Tensor]] = {
            "weights": dict(zip(self._names, self._parameters, strict=True)),
            "optimizer": moments,
            **{f"ema-{name}": dict(zip(self._names, average.tensors, strict=True)) for name, average in self.averages.items()},
        }
        window = {"losses": [float(v) for v in self._window.losses], "norms": [float(v) for v in self._window.norms]}
        return CheckpointState(
            step=self.step,
            tensors={group: {name: _host_copy(tensor) for name, tensor in named.items()} for group, named in groups.items()},
            facts={"window": window, "images_seen": self.step * self.recipe.training.batch_images},
        )

    def restore(self, state: CheckpointState) -> None:
        """Continue from `state`.

        Raises:
            StateMismatch: naming the tensor that is missing, unexpected or of another shape.
        """
        self._copy_in("weights", state, self._parameters)
        for name, average in self.averages.items():
            self._copy_in(f"ema-{name}", state, average.tensors)
        moments = _group(state, "optimizer")
        for name, parameter in zip(self._names, self._parameters, strict=True):
            self.optimizer.state[parameter] = {
                # The fused update walks raw memory: moments must have the strides of their parameter.
                kind: torch.empty_like(parameter, requires_grad=False).copy_(_fitting(f"{kind}.{name}", moments, parameter))
                for kind in ("exp_avg", "exp_avg_sq")
            }
            # AdamW counts its updates per parameter; they are all the same number here.
            self.optimizer.state[parameter]["step"] = torch.tensor(float(state.step), device=self.device)
        window = state.facts["window"]
        device = self.device
        self._window = _Window(
            losses=[torch.tensor(v, device=device) for v in window["losses"]],
            norms=[torch.tensor(v, device=device) for v in window["norms"]],
        )
        self.step = state.step

    @torch.no_grad()
    def _copy_in(self, group: str, state: CheckpointState, targets: list[Any]) -> None:
        saved = _group(state, group)
        if extra := sorted(set(saved) - set(self._names)):
            raise StateMismatch(f"group {group} holds tensors that the network does not have: {', '.join(extra[:5])}")
        for name, target in zip(self._names, targets, strict=True):
            target.copy_(_fitting(name, saved, target))


def profiles_of(training: TrainingConfig) -> list[Profile]:
    """Return the averages of the weights that `training` asks for."""
    profiles: list[Profile] = [PowerProfile(width) for width in training.ema_sigma_rel]
    if training.ema_decay is not None:
        profiles.append(ClassicProfile(training.ema_decay))
    return profiles


def _dropout_seed(seed: int, step: int, position: int) -> int:
    drawn = rng.words(seed, rng.Stream.DROPOUT, step, torch.tensor([position]), 2)[0].tolist()
    return int(drawn[0] << 31 ^ drawn[1])


def _host_copy(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", copy=True)


def _group(state: CheckpointState, group: str) -> dict[str, Tensor]:
    try:
        return state.tensors[group]
    except KeyError:
        raise StateMismatch(
            f"the checkpoint of step {state.step} has no group '{group}', only {', '.join(sorted(state.tensors))}"
        ) from None


def _fitting(name: str, tensors: dict[str, Tensor], like: Tensor) -> Tensor:
    found = tensors.get(name)
    if found is None:
        raise StateMismatch(f"tensor {name} is missing")
    if found.shape != like.shape or found.dtype != like.dtype:
        raise StateMismatch(f"tensor {name} is {found.dtype} {tuple(found.shape)}, the network has {like.dtype} {tuple(like.shape)}")
    return found
