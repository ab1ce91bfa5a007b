"""The optimiser: AdamW over two parameter groups, its learning rate schedule, gradient clipping, and updates that skip non-finite values.

Promises: with a non-finite gradient anywhere, `guarded_step` leaves weights and moments untouched, without waiting for the device.
"""

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from model.config import OptimizerConfig


def learning_rate(config: OptimizerConfig, step: int) -> float:
    """Return the rate for the optimiser step with index `step`, counted from 0."""
    if step < config.warmup_steps:
        return config.lr_peak * (step + 1) / config.warmup_steps
    if config.schedule == "constant" or config.decay_steps is None:
        return config.lr_peak
    if config.schedule == "inverse_sqrt":
        return config.lr_peak * math.sqrt(config.decay_steps / max(step, config.decay_steps))
    progress = min((step - config.warmup_steps) / (config.decay_steps - config.warmup_steps), 1.0)
    return config.lr_floor + (config.lr_peak - config.lr_floor) * (1 + math.cos(math.pi * progress)) / 2


def parameter_groups(network: nn.Module, weight_decay: float) -> list[dict[str, object]]:
    """Split the parameters: matrices and kernels decay, everything with one axis (biases, norms) and the time embedding does not."""
    with_decay: list[nn.Parameter] = []
    without_decay: list[nn.Parameter] = []
    for name, parameter in network.named_parameters():
        if parameter.requires_grad:
            (without_decay if parameter.ndim < 2 or name.split(".")[0] == "time" else with_decay).append(parameter)
    return [{"params": with_decay, "weight_decay": weight_decay}, {"params": without_decay, "weight_decay": 0.0}]


def build_optimizer(network: nn.Module, config: OptimizerConfig) -> torch.optim.AdamW:
    """Return fused AdamW; its learning rate is a tensor, set each step from `learning_rate`, so that a compiled step is not recompiled."""
    device = next(network.parameters()).device
    groups = parameter_groups(network, config.weight_decay)
    rate = torch.tensor(config.lr_peak, dtype=torch.float32, device=device)
    return torch.optim.AdamW(groups, lr=rate, betas=config.betas, eps=config.eps, fused=True)


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the learning rate of every group."""
    for group in optimizer.param_groups:
        group["lr"].fill_(rate)


def is_known_to_host(value: Tensor) -> bool:
    """Return whether reading `value` makes no device wait."""
    return value.device.type == "cpu"


def clip_gradients(parameters: Iterable[Tensor], max_norm: float) -> Tensor:
    """Scale all gradients down to the global norm `max_norm` and return the norm before, as a tensor on the device."""
    parameters = list(parameters)
    norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None], foreach=True)
    # Below the bound clipping would multiply all gradients by 1. A NaN is not below it.
    if not (is_known_to_host(norm) and max_norm / (norm + 1e-6) >= 1):
        nn.utils.clip_grads_with_norm_(parameters, max_norm, norm, foreach=True)
    return norm


def guarded_step(optimizer: torch.optim.AdamW, is_nonfinite: Tensor) -> None:
    """Update the weights unless `is_nonfinite` (float32 scalar, 0 or 1) is set; the device decides."""
    # `found_inf` is how GradScaler makes a fused optimiser skip an update; torch 2.15 reads it on CPU and CUDA alike.
    optimizer.found_inf = is_nonfinite  # type: ignore[attr-defined]
    optimizer.grad_scale = None  # type: ignore[attr-defined]
    optimizer.step()
