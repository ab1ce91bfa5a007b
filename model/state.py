"""Copy the state of a training to host memory and restore it: weights, optimiser moments, averages and facts.

Promises: a restored training continues bitwise equal; a state that does not match the network is refused, naming the tensor, before
anything is overwritten. Training waits for the copy to host memory alone. Files are written in `checkpoint.py`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from model.canonical import JsonObject
from model.checkpoint import CheckpointState
from model.ema import RAW_WEIGHTS, EmaName
from model.ema_profiles import AveragedWeights

_MOMENTS = ("exp_avg", "exp_avg_sq")
_OPTIMIZER_GROUP = "optimizer"
AUXILIARY_GROUP = "auxiliary"
"""The tensor group with the weights of a distillation's second network; no name of an average, so that nothing samples from it."""
_AUXILIARY_OPTIMIZER_GROUP = "auxiliary-optimizer"


class StateMismatch(ValueError):
    """A saved state does not match the network that it is loaded into."""


class HostCopier:
    """Copies tensors to host memory; from CUDA through page-locked buffers, which are allocated once and reused.

    From CUDA, each `copy` overwrites the tensors of the one before: copy again only once those are on disk.
    """

    def __init__(self) -> None:
        self._buffers: dict[tuple[str, str], Tensor] = {}

    def copy(self, groups: Mapping[str, Mapping[str, Tensor]]) -> dict[str, dict[str, Tensor]]:
        """Return the same groups in host memory; the copy is complete when this returns."""
        copied = {group: {name: self._start(group, name, tensor) for name, tensor in named.items()} for group, named in groups.items()}
        if self._buffers:
            torch.cuda.synchronize()
        return copied

    def _start(self, group: str, name: str, tensor: Tensor) -> Tensor:
        source = tensor.detach()
        if source.device.type != "cuda":
            return source.to("cpu", copy=True)
        buffer = self._buffers.get((group, name))
        if buffer is None:
            buffer = self._buffers[group, name] = torch.empty_like(source, device="cpu", pin_memory=True)
        return buffer.copy_(source, non_blocking=True)


@dataclass(frozen=True)
class CheckpointedNetwork:
    """A network and its optimiser, whose moments a checkpoint holds; a step runs it as a `TrainedNetwork`."""

    network: nn.Module
    optimizer: torch.optim.Optimizer


class TrainingState:
    """The tensors of one training by name; `auxiliary` is a second network of the same shape that is trained with the first."""

    def __init__(
        self,
        network: nn.Module,
        optimizer: torch.optim.Optimizer,
        averages: Mapping[EmaName, AveragedWeights],
        auxiliary: CheckpointedNetwork | None = None,
    ) -> None:
        self.names = [name for name, _ in network.named_parameters()]
        self.parameters = list(network.parameters())
        self._networks = {_OPTIMIZER_GROUP: CheckpointedNetwork(network, optimizer)}
        self._averages = averages
        self._auxiliary: dict[str, Sequence[Tensor]] = {}
        if auxiliary is not None:
            self._auxiliary = {AUXILIARY_GROUP: list(auxiliary.network.parameters())}
            self._networks[_AUXILIARY_OPTIMIZER_GROUP] = auxiliary
        self._copier = HostCopier()

    def copy_to_host(self, step: int, facts: JsonObject) -> CheckpointState:
        """Copy everything to host memory."""
        groups = {group: self._by_name(tensors) for group, tensors in self._targets().items()}
        groups |= {group: _moments_of(network) for group, network in self._networks.items()}
        return CheckpointState(step=step, tensors=self._copier.copy(groups), facts=facts)

    def copy_averages(self, averages: Mapping[EmaName, AveragedWeights]) -> dict[str, dict[str, Tensor]]:
        """Copy `averages` to new host memory, which no later copy overwrites."""
        return {
            name.group: {key: tensor.detach().to("cpu", copy=True) for key, tensor in self._by_name(average.tensors).items()}
            for name, average in averages.items()
        }

    def restore(self, state: CheckpointState) -> None:
        """Overwrite everything with `state`.

        Raises:
            StateMismatch: naming the tensor that is missing, unexpected or of another shape.
        """
        for group, targets in self._targets().items():
            _check_group(group, state, self.names, targets)
        for group, targets in self._targets().items():
            with torch.no_grad():
                for name, target in zip(self.names, targets, strict=True):
                    target.copy_(state.tensors[group][name])
        for group, network in self._networks.items():
            _restore_moments(network, _group(state, group), step=state.step)

    def _by_name(self, tensors: Sequence[Tensor]) -> dict[str, Tensor]:
        return dict(zip(self.names, tensors, strict=True))

    def _targets(self) -> dict[str, Sequence[Tensor]]:
        averages = {name.group: average.tensors for name, average in self._averages.items()}
        return {RAW_WEIGHTS.group: self.parameters, **averages, **self._auxiliary}


def _moments_of(stored: CheckpointedNetwork) -> dict[str, Tensor]:
    moments: dict[str, Tensor] = {}
    for name, parameter in stored.network.named_parameters():
        state = stored.optimizer.state.get(parameter, {})
        moments |= {f"{kind}.{name}": state[kind] for kind in _MOMENTS if kind in state}
    return moments


def _restore_moments(stored: CheckpointedNetwork, moments: dict[str, Tensor], *, step: int) -> None:
    for name, parameter in stored.network.named_parameters():
        stored.optimizer.state[parameter] = {
            # The fused update reads raw memory: moments must have the strides of their parameter.
            kind: torch.empty_like(parameter, requires_grad=False).copy_(_matching_tensor(f"{kind}.{name}", moments, parameter))
            for kind in _MOMENTS
        }
        # AdamW counts its updates per parameter; they are all the same number here.
        stored.optimizer.state[parameter]["step"] = torch.tensor(float(step), device=parameter.device)


def _check_group(group: str, state: CheckpointState, names: Sequence[str], targets: Sequence[Tensor]) -> None:
    saved = _group(state, group)
    if extra := sorted(set(saved) - set(names)):
        raise StateMismatch(f"group {group} holds tensors that the network does not have: {', '.join(extra[:5])}")
    for name, target in zip(names, targets, strict=True):
        _matching_tensor(name, saved, target)


def _group(state: CheckpointState, group: str) -> dict[str, Tensor]:
    try:
        return state.tensors[group]
    except KeyError:
        raise StateMismatch(
            f"the checkpoint of step {state.step} has no group '{group}', only {', '.join(sorted(state.tensors))}"
        ) from None


def _matching_tensor(name: str, tensors: dict[str, Tensor], like: Tensor) -> Tensor:
    tensor = tensors.get(name)
    if tensor is None:
        raise StateMismatch(f"tensor {name} is missing")
    if tensor.shape != like.shape or tensor.dtype != like.dtype:
        raise StateMismatch(f"tensor {name} is {tensor.dtype} {tuple(tensor.shape)}, the network has {like.dtype} {tuple(like.shape)}")
    return tensor
