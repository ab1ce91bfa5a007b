"""The state of a training, to host memory and back: weights, optimiser moments, averages, and the facts beside them.

Promises: restoring what was taken gives bitwise the same training; a state that does not fit the network is refused by the name of the
tensor before anything is overwritten with it. The copy to host memory is all that a training waits for. Files are the business of
`model/checkpoint.py`.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from model.canonical import JsonObject
from model.checkpoint import CheckpointState
from model.ema import AveragedWeights

_MOMENTS = ("exp_avg", "exp_avg_sq")


class StateMismatch(ValueError):
    """A saved state does not fit the network that it is loaded into."""


class HostCopier:
    """Copies tensors to host memory; from CUDA through page-locked buffers that are made once and used again.

    The tensors of one `copy` are overwritten by the next from CUDA: take the next snapshot when the one before is on disk.
    """

    def __init__(self) -> None:
        self._buffers: dict[tuple[str, str], Tensor] = {}

    def copy(self, groups: Mapping[str, Mapping[str, Tensor]]) -> dict[str, dict[str, Tensor]]:
        """Return the same groups in host memory, whole when this returns."""
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


class TrainingState:
    """The tensors of one training, by name: where they live, and how they are taken and put back."""

    def __init__(self, network: nn.Module, optimizer: torch.optim.Optimizer, averages: Mapping[str, AveragedWeights]) -> None:
        self.names = [name for name, _ in network.named_parameters()]
        self.parameters = list(network.parameters())
        self._optimizer = optimizer
        self._averages = averages
        self._copier = HostCopier()

    def take(self, step: int, facts: JsonObject) -> CheckpointState:
        """Copy everything to host memory."""
        moments: dict[str, Tensor] = {}
        for name, parameter in zip(self.names, self.parameters, strict=True):
            state = self._optimizer.state.get(parameter, {})
            moments |= {f"{kind}.{name}": state[kind] for kind in _MOMENTS if kind in state}
        groups = {
            "weights": self._named(self.parameters),
            "optimizer": moments,
            **{f"ema-{name}": self._named(average.tensors) for name, average in self._averages.items()},
        }
        return CheckpointState(step=step, tensors=self._copier.copy(groups), facts=facts)

    def take_averages(self, averages: Mapping[str, AveragedWeights]) -> dict[str, dict[str, Tensor]]:
        """Copy some averages alone to host memory of their own, which no later copy overwrites."""
        return {
            f"ema-{name}": {key: tensor.detach().to("cpu", copy=True) for key, tensor in self._named(average.tensors).items()}
            for name, average in averages.items()
        }

    def put_back(self, state: CheckpointState) -> None:
        """Overwrite everything with `state`.

        Raises:
            StateMismatch: naming the tensor that is missing, unexpected or of another shape.
        """
        for group, targets in self._targets().items():
            _refuse_unfitting(group, state, self.names, targets)
        for group, targets in self._targets().items():
            with torch.no_grad():
                for name, target in zip(self.names, targets, strict=True):
                    target.copy_(state.tensors[group][name])
        moments = _group(state, "optimizer")
        for name, parameter in zip(self.names, self.parameters, strict=True):
            self._optimizer.state[parameter] = {
                # The fused update walks raw memory: moments must have the strides of their parameter.
                kind: torch.empty_like(parameter, requires_grad=False).copy_(_fitting(f"{kind}.{name}", moments, parameter))
                for kind in _MOMENTS
            }
            # AdamW counts its updates per parameter; they are all the same number here.
            self._optimizer.state[parameter]["step"] = torch.tensor(float(state.step), device=parameter.device)

    def _named(self, tensors: Sequence[Tensor]) -> dict[str, Tensor]:
        return dict(zip(self.names, tensors, strict=True))

    def _targets(self) -> dict[str, Sequence[Tensor]]:
        return {"weights": self.parameters, **{f"ema-{name}": average.tensors for name, average in self._averages.items()}}


def _refuse_unfitting(group: str, state: CheckpointState, names: Sequence[str], targets: Sequence[Tensor]) -> None:
    saved = _group(state, group)
    if extra := sorted(set(saved) - set(names)):
        raise StateMismatch(f"group {group} holds tensors that the network does not have: {', '.join(extra[:5])}")
    for name, target in zip(names, targets, strict=True):
        _fitting(name, saved, target)


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
