"""What a CPU can show of the speed on a GPU: graphs, their number, equal numbers, and when gradients are there."""

import gc
import math
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from celebdit_testing.recipes import tiny_network, tiny_recipe
from celebdit_testing.shaken import shaken
from functorch.compile import make_boxed_func
from torch import Tensor, nn
from torch._dynamo.backends.common import aot_autograd
from torch._dynamo.testing import CompileCounterWithBackend
from torch._inductor import config as inductor
from torch.utils._python_dispatch import TorchDispatchMode

from model import rng
from model.compilation import INDUCTOR_OPTIONS, NETWORK_OPTIONS, compile_network
from model.denoiser import build_denoiser
from model.diffusion import build_diffusion
from model.ema_profiles import gamma_of_sigma_rel
from model.generator import Generator, _twin
from model.noised_batch import BatchNoise, step_tensor

CPU = torch.device("cpu")
DEPTH = 2
SLOW = (pytest.mark.fault, pytest.mark.slow)


def network_of(**changes: Any) -> nn.Module:
    return shaken(build_denoiser(tiny_network(depth=DEPTH, **changes), seed=0), 0.05)


IMAGES, TIMES = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(3)), torch.tensor([10.0, 800.0])


# Noise, flips, normalisation and mixing


@pytest.mark.parametrize("augmentation", [0.0, 0.5])
def test_compiled_noise_flips_and_mixing_are_one_graph_for_all_steps_with_the_same_words(augmentation: float) -> None:
    torch._dynamo.reset()
    noise = BatchNoise(build_diffusion(tiny_recipe().diffusion), 5, True, augmentation)
    counter = CompileCounterWithBackend("aot_eager")
    compiled = noise.compile(backend=counter)
    images, ids = torch.randint(0, 256, (4, 3, 16, 16), dtype=torch.uint8), torch.arange(8, 12)
    for step in (0, 1, 77, 2**31):
        plain, traced = noise(images, ids, step_tensor(step, CPU)), compiled(images, ids, step_tensor(step, CPU))
        assert torch.equal(plain.noise, rng.normal(5, rng.Stream.NOISE, step, ids, (3, 16, 16)))
        for one, other in zip(plain, traced, strict=True):
            torch.testing.assert_close(other, one, rtol=1e-6, atol=5e-7)
    assert counter.frame_count == 1


def test_words_of_a_compiled_function_are_those_of_the_plain_one() -> None:
    torch._dynamo.reset()

    def words(step: Tensor, ids: Tensor) -> Tensor:
        return rng.words(2**40 + 3, rng.Stream.NOISE, step, ids, 10)

    compiled = torch.compile(words, fullgraph=True, dynamic=False, backend="aot_eager")
    for step in (3, 2**32 - 1):
        assert torch.equal(
            compiled(step_tensor(step, CPU), torch.arange(3)), rng.words(2**40 + 3, rng.Stream.NOISE, step, torch.arange(3), 10)
        )


class HostReads(TorchDispatchMode):
    """Counts operations that would make the host wait for a device."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seen: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.__name__.split(".")[0] in ("_local_scalar_dense", "nonzero", "masked_select", "item", "equal"):
            self.seen.append(func.__name__)
        return func(*args, **(kwargs or {}))


def test_making_a_batch_reads_nothing_back_from_the_device() -> None:
    noise = BatchNoise(build_diffusion(tiny_recipe().diffusion), 5, True, 0.5)
    with HostReads() as reads:
        noise(torch.zeros(2, 3, 16, 16, dtype=torch.uint8), torch.arange(2), step_tensor(4, CPU))
    assert reads.seen == []
    with HostReads() as reads:
        float(torch.ones(()))
    assert reads.seen, "such a read would have been seen"


# Compilation block by block


def gradients(forward: Callable[[Tensor, Tensor], Tensor], network: nn.Module) -> list[Tensor]:
    torch.manual_seed(7)
    return list(torch.autograd.grad(forward(IMAGES, TIMES).square().sum(), list(network.parameters())))


@pytest.mark.parametrize("recompute", [False, pytest.param(True, marks=SLOW)])
@pytest.mark.fault
@pytest.mark.slow
def test_blocks_compile_once_for_each_kind_and_give_the_same_numbers(recompute: bool) -> None:
    torch._dynamo.reset()
    network = network_of(dropout=0.2)
    network.recompute_activations = recompute
    expected, names = gradients(network, network), [name for name, _ in network.named_parameters()]
    counter = CompileCounterWithBackend("aot_eager")
    compiled = compile_network(network, by_block=True, backend=counter)
    assert compiled is network
    for one, other in zip(expected, gradients(compiled, network), strict=True):
        torch.testing.assert_close(other, one, rtol=1e-4, atol=1e-5)
    assert [name for name, _ in network.named_parameters()] == names
    blocks, between = 3, 6
    assert counter.frame_count == blocks + between, (
        f"{DEPTH} equal transformer blocks are one graph, those of two widths one each, and so is each of the layers between two levels"
    )


def test_a_network_without_such_blocks_is_compiled_whole() -> None:
    torch._dynamo.reset()
    layer = nn.Linear(3, 3)
    counter = CompileCounterWithBackend("eager")
    compile_network(layer, by_block=True, backend=counter)(torch.ones(1, 3))
    assert counter.frame_count == 1


def test_networks_of_many_sizes_are_compiled_block_by_block_in_one_process_from_any_thread() -> None:
    """Each size is one more graph of the same functions, of which the compiler allows eight, and then refuses to compile."""
    torch._dynamo.reset()

    def run(width: int) -> None:
        compile_network(network_of(channels=(width, 2 * width)), by_block=True, backend="eager")(IMAGES, TIMES)

    with ThreadPoolExecutor(1) as pool:
        list(pool.map(run, range(4, 44, 4)))


def test_a_plain_codec_is_compiled_too() -> None:
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("eager")
    network = network_of(codec="plain", channels=(), res_blocks=(), latent_channels=4, patch_px=2)
    compile_network(network, by_block=True, backend=counter)(IMAGES, TIMES)
    assert counter.frame_count == 3, "encoder, decoder and transformer blocks"


@pytest.mark.parametrize(("by_block", "waits"), [pytest.param(True, False, marks=SLOW), pytest.param(False, True, marks=SLOW)])
def test_gradients_are_there_during_the_backward_pass_if_blocks_are_compiled(by_block: bool, waits: bool) -> None:
    """DistributedDataParallel reduces a gradient when its hook is called: after one graph for all, all hooks come at the end."""
    torch._dynamo.reset()
    done = 0

    def counted(graph: Any, inputs: Any) -> Any:
        def run(*arguments: Any) -> Any:
            nonlocal done
            done += 1
            return graph(*arguments)

        return make_boxed_func(run)

    backend = aot_autograd(fw_compiler=lambda graph, inputs: make_boxed_func(graph.forward), bw_compiler=counted)
    network = network_of()
    fired: list[int] = []
    for parameter in network.parameters():
        parameter.register_post_accumulate_grad_hook(lambda parameter: fired.append(done))
    forward = compile_network(network, by_block=by_block, backend=backend)
    forward(IMAGES, TIMES).square().sum().backward()
    graphs = done
    assert len(fired) == len(list(network.parameters()))
    assert (graphs == 1) == waits
    early = sum(at < graphs for at in fired) / len(fired)
    assert (early == 0) if waits else (early > 0.5), f"{early:.0%} of the gradients were there before the last of {graphs} graphs"


def test_the_options_are_known_to_the_compiler() -> None:
    for name in NETWORK_OPTIONS:
        assert name in inductor.get_config_copy()
    assert INDUCTOR_OPTIONS["deterministic"], "kernels are not chosen by timings, which differ after a restart"
    network = network_of()
    assert compile_network(network, by_block=False) is not network, "torch.compile refuses options that it does not know"


# Sampling


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"linear_path": True},
        {"linear_path": True, "res_norm": "layer"},
        {"linear_path": True, "local_share": True},
    ],
    ids=str,
)
def test_weights_in_bfloat16_give_what_autocast_makes_of_the_same_weights(changes: dict[str, object]) -> None:
    recipe = tiny_recipe(network={"depth": 2, **changes})
    network = shaken(build_denoiser(recipe.network, seed=0), 0.05).eval()
    with torch.backends.mkldnn.flags(enabled=False), torch.inference_mode():
        generator = Generator(network.state_dict(), recipe.network, recipe.diffusion, device=CPU, precision="bfloat16")
        halved = [p for p in generator._network.parameters() if p.dtype == torch.bfloat16]
        with torch.autocast("cpu", dtype=torch.bfloat16):
            expected = network(IMAGES.contiguous(memory_format=torch.channels_last), TIMES)
        assert torch.equal(generator._call(IMAGES, TIMES), expected)
    assert sum(p.numel() for p in halved) > 0.5 * sum(p.numel() for p in network.parameters())


def test_a_compiled_generator_shares_its_weights_and_leaves_the_network_that_measures_memory_alone() -> None:
    torch._dynamo.reset()
    recipe = tiny_recipe(network={"depth": 2})
    weights = shaken(build_denoiser(recipe.network, seed=0), 0.05).state_dict()
    plain, compiled = (Generator(weights, recipe.network, recipe.diffusion, device=CPU, compiled=compiled) for compiled in (False, True))
    pairs = zip(compiled._network.parameters(), compiled._forward.parameters(), strict=True)
    assert all(one.data_ptr() == other.data_ptr() for one, other in pairs)
    counter = CompileCounterWithBackend("aot_eager")
    compiled._forward = compile_network(compiled._forward, by_block=True, backend=counter)
    torch.testing.assert_close(compiled._call(IMAGES, TIMES), plain._call(IMAGES, TIMES), rtol=1e-4, atol=1e-5)
    assert counter.frame_count > 0
    graphs = counter.frame_count
    compiled._run(compiled._network, IMAGES[:1], TIMES[:1])
    assert counter.frame_count == graphs, "a batch of another size would be compiled"


def test_a_search_frees_the_weights_of_a_compiled_generator() -> None:
    """An evaluation of several checkpoints needs the memory of the one before."""
    torch._dynamo.reset()
    recipe = tiny_recipe(network={"depth": 2})
    generator = Generator(build_denoiser(recipe.network, seed=0).state_dict(), recipe.network, recipe.diffusion, device=CPU)
    generator._forward = compile_network(_twin(generator._network), by_block=True, backend="aot_eager")
    generator._call(IMAGES, TIMES)
    weights = [weakref.ref(parameter) for parameter in generator._network.parameters()]
    del generator
    gc.collect()
    assert [weight() for weight in weights] == [None] * len(weights)


# Averages


def test_the_exponent_of_a_profile_is_computed_once() -> None:
    gamma_of_sigma_rel.cache_clear()
    assert gamma_of_sigma_rel(0.1) == gamma_of_sigma_rel(0.1)
    assert gamma_of_sigma_rel.cache_info().misses == 1
    assert math.isclose(gamma_of_sigma_rel(0.1), 6.94, abs_tol=0.01)
