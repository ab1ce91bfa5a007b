"""The optimiser: groups, learning rates, clipping, and the guard."""

import math

import pytest
import torch
from celebdit_testing.recipes import tiny_network

from model.config import OptimizerConfig
from model.denoiser import build_denoiser
from model.optim import build_optimizer, clip_gradients, guarded_step, learning_rate, parameter_groups, set_learning_rate


def config(**values: object) -> OptimizerConfig:
    return OptimizerConfig.model_validate({"lr_peak": 1.0, "warmup_steps": 10, **values})


def test_the_rate_is_a_pure_function_of_the_step() -> None:
    constant = config()
    assert [learning_rate(constant, step) for step in (0, 4, 9, 10, 10**6)] == [0.1, 0.5, 1.0, 1.0, 1.0]
    cosine = config(schedule="cosine", decay_steps=110, lr_floor=0.2)
    assert learning_rate(cosine, 60) == pytest.approx(0.6)
    assert [learning_rate(cosine, step) for step in (110, 500)] == [pytest.approx(0.2)] * 2
    root = config(schedule="inverse_sqrt", decay_steps=100)
    assert [learning_rate(root, step) for step in (50, 100, 400)] == [1.0, 1.0, 0.5]
    assert learning_rate(config(warmup_steps=0), 0) == 1.0


@pytest.mark.parametrize("codec", [{}, {"codec": "plain", "channels": (), "res_blocks": (), "latent_channels": 4}])
def test_norms_biases_and_embeddings_do_not_decay_and_everything_is_in_one_group(codec: dict[str, object]) -> None:
    network = build_denoiser(tiny_network(**codec))
    decayed, free = parameter_groups(network, 0.1)
    assert (decayed["weight_decay"], free["weight_decay"]) == (0.1, 0.0)
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    decaying, staying = ({names[id(p)] for p in group["params"]} for group in (decayed, free))  # type: ignore[union-attr]
    assert decaying | staying == set(names.values())
    assert not decaying & staying
    assert all(name.endswith(".bias") or "norm" in name or name.startswith("time.") for name in staying)
    assert not any(name.endswith(".bias") or "norm" in name for name in decaying)
    assert "core.embed.weight" in decaying
    assert "time.hidden.weight" in staying


def one_parameter(value: float = 1.0) -> torch.nn.Module:
    module = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.constant_(module.weight, value)
    return module


def test_a_step_is_adamws() -> None:
    """Loshchilov & Hutter 2019, algorithm 2, three steps by hand."""
    settings = config(betas=(0.9, 0.95), weight_decay=0.1, eps=1e-8)
    module = one_parameter()
    optimizer = build_optimizer(module, settings)
    weight, m, v = 1.0, 0.0, 0.0
    for t, gradient in enumerate([0.5, -2.0, 0.1], start=1):
        rate = 0.01 * t
        set_learning_rate(optimizer, rate)
        module.weight.grad = torch.tensor([[gradient]])
        guarded_step(optimizer, torch.zeros(()))
        m, v = 0.9 * m + 0.1 * gradient, 0.95 * v + 0.05 * gradient**2
        weight = weight * (1 - rate * 0.1) - rate * (m / (1 - 0.9**t)) / (math.sqrt(v / (1 - 0.95**t)) + 1e-8)
        assert float(module.weight) == pytest.approx(weight, rel=1e-5)


def test_a_poisoned_step_changes_nothing_and_the_next_is_as_if_it_had_not_been() -> None:
    modules = [one_parameter(), one_parameter()]
    optimizers = [build_optimizer(module, config()) for module in modules]
    for gradient, is_nonfinite in ((0.5, 0.0), (float("nan"), 1.0), (-0.3, 0.0)):
        for module, optimizer, sees_nonfinite in zip(modules, optimizers, (True, False), strict=True):
            if is_nonfinite and not sees_nonfinite:
                continue
            before = module.weight.detach().clone()
            module.weight.grad = torch.tensor([[gradient]])
            guarded_step(optimizer, torch.tensor(is_nonfinite))
            assert bool(is_nonfinite) == torch.equal(module.weight, before)
    assert torch.equal(modules[0].weight, modules[1].weight)
    states = [optimizer.state[module.weight] for module, optimizer in zip(modules, optimizers, strict=True)]
    assert all(torch.equal(states[0][key], states[1][key]) for key in ("step", "exp_avg", "exp_avg_sq"))


def test_clipping_scales_to_the_norm_and_reports_the_norm_before() -> None:
    parameters = [torch.zeros(3, requires_grad=True), torch.zeros(2, 2, requires_grad=True)]
    for parameter, value in zip(parameters, (2.0, 4.0), strict=True):
        parameter.grad = torch.full_like(parameter, value)
    before = math.sqrt(3 * 4 + 4 * 16)
    assert float(clip_gradients(parameters, 1.0)) == pytest.approx(before)
    after = math.sqrt(sum(float(parameter.grad.square().sum()) for parameter in parameters if parameter.grad is not None))
    assert after == pytest.approx(1.0, rel=1e-4)
    assert float(clip_gradients(parameters, 5.0)) == pytest.approx(1.0, rel=1e-4)
    assert after == pytest.approx(math.sqrt(sum(float(p.grad.square().sum()) for p in parameters if p.grad is not None)), rel=1e-4)


@pytest.mark.parametrize("largest", [0.0, 0.3, 0.999999, 1.0, 1.000001, 7.0, math.inf, math.nan])
def test_clipping_has_the_bits_of_torchs(largest: float) -> None:
    ours, torchs = ([torch.zeros(3, requires_grad=True), torch.zeros(2, requires_grad=True)] for _ in range(2))
    for parameters in (ours, torchs):
        parameters[0].grad = torch.tensor([0.0, largest, -0.0])
    norm = torch.nn.utils.clip_grad_norm_(torchs, 1.0, foreach=True)
    assert clip_gradients(ours, 1.0).numpy().tobytes() == norm.numpy().tobytes()
    assert ours[0].grad is not None
    assert torchs[0].grad is not None
    assert ours[0].grad.numpy().tobytes() == torchs[0].grad.numpy().tobytes()
    assert ours[1].grad is None


def test_gradients_below_the_bound_are_not_written() -> None:
    parameter = torch.zeros(3, requires_grad=True)
    parameter.grad = torch.full((3,), 0.1)
    version = parameter.grad._version
    clip_gradients([parameter], 1.0)
    assert parameter.grad._version == version
    clip_gradients([parameter], 0.1)
    assert parameter.grad._version > version


def test_the_network_runs_on_its_fused_kernels() -> None:
    optimizer = build_optimizer(build_denoiser(tiny_network()), config())
    assert all(group["fused"] for group in optimizer.param_groups)
