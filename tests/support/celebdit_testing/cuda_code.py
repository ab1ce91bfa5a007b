"""The kernels that torch.compile would run on an H100, written by Inductor and compiled by Triton on a machine without a GPU.

Promises: kernels are those of the installed torch for the shapes of a preset, traced on tensors without memory; nothing is run. Run it in a
process of its own, `python -m celebdit_testing.cuda_code PART`: it makes torch believe that there is a GPU. Prints one JSON object for each
kernel: its name, how often it is called, the size of each tensor that the first call writes, and what Triton says.
"""

import importlib.util
import json
import math
import re
import sys
import tempfile
from ast import literal_eval
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch._inductor.config as inductor
import triton
from torch import nn
from torch._dynamo.backends.common import aot_autograd
from torch._dynamo.device_interface import CudaInterface
from torch._functorch.aot_autograd import make_boxed_func
from torch._functorch.partitioners import min_cut_rematerialization_partition
from torch._inductor.debug import DebugContext
from torch._inductor.decomposition import select_decomp_table
from torch._inductor.fx_passes.joint_graph import joint_graph_passes
from torch._inductor.fx_passes.post_grad import decompose_triton_kernel_wrapper_functional
from torch._inductor.fx_passes.reinplace import reinplace_inplaceable_ops_core
from torch._inductor.graph import GraphLowering
from torch._inductor.virtualized import V
from torch._subclasses import fake_tensor
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.passes.fake_tensor_prop import FakeTensorProp
from torch.utils import _triton
from torch.utils._pytree import tree_map
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

from model import codec, layers, thin_convolution
from model.codec import ResidualDecoder
from model.compilation import INDUCTOR_OPTIONS, NETWORK_OPTIONS
from model.diffusion import build_diffusion
from model.dit import Block
from model.moment_matching import JumpNoise
from model.noised_batch import BatchNoise
from model.residual_blocks import ResidualBlock
from pipeline.config import load_config

IMAGES = 128
_H100 = GPUTarget("cuda", 90, 32)
_BYTES = {"*fp32": 4, "*bf16": 2, "*i64": 8, "*fp64": 8, "*u8": 1, "*i1": 1, "*i32": 4}
_NOISE = ("noise", "noise-augmented")
_BLOCK_SIZES = {"XBLOCK": 64, "YBLOCK": 16, "R0_BLOCK": 64}


class _Driver:
    """What Triton asks the driver of a GPU for."""

    def get_current_target(self) -> GPUTarget:
        return _H100

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cuda", 0)

    def get_current_device(self) -> int:
        return 0


def _pretend() -> None:
    """Make Inductor believe that there is an H100."""
    properties = SimpleNamespace(
        name="NVIDIA H100",
        major=9,
        minor=0,
        multi_processor_count=132,
        total_memory=80 * 2**30,
        max_threads_per_multi_processor=2048,
        max_threads_per_block=1024,
        regs_per_multiprocessor=65536,
        warp_size=32,
    )
    answers: dict[str, object] = {"is_available": True, "device_count": 1, "current_device": 0, "get_device_properties": properties}
    answers |= {"get_device_capability": (9, 0), "synchronize": None, "_lazy_init": None, "get_compute_capability": 90}

    def answer(value: object) -> Callable[..., object]:
        return lambda *arguments, **named: value

    for name, value in answers.items():
        if hasattr(torch.cuda, name):
            setattr(torch.cuda, name, answer(value))
        for interface in (CudaInterface, CudaInterface.Worker):
            if hasattr(interface, name):
                setattr(interface, name, staticmethod(answer(value)))
    for function in vars(_triton).values():
        if hasattr(function, "cache_clear"):
            function.cache_clear()  # whether there is a Triton that works here
    fake_tensor.init_gpu_context = answer(None)


def _trace_like_cuda() -> None:
    """Take the branches of the network for CUDA with autocast, and the memory order of cuDNN's convolutions."""
    driver.set_active(_Driver())  # type: ignore[arg-type]  # own kernels are read for what they write
    torch._C._conv_determine_backend_memory_format = lambda *arguments, **named: torch.channels_last  # type: ignore[attr-defined]
    layers.compiled_for_cuda = lambda x: True
    codec.in_channels_last = lambda x: x.contiguous(memory_format=torch.channels_last)
    plain = thin_convolution.convolve_to_image
    codec.convolve_to_image = lambda layer, x, *, halve_weight_gradient: plain(layer, x, halve_weight_gradient=True)


Graph = tuple[torch.fx.GraphModule, list[Any]]


def _graphs(make: Callable[[], nn.Module], make_inputs: Callable[[], Sequence[torch.Tensor]]) -> list[Graph]:
    """Return the graphs of a forward and backward pass as Inductor gets them, traced on a CPU."""
    graphs: list[Graph] = []
    mode = fake_tensor.FakeTensorMode(allow_non_fake_inputs=True)

    def keep(graph: torch.fx.GraphModule, inputs: Any) -> Any:
        graphs.append((graph, list(inputs)))
        return make_boxed_func(graph.forward)

    def partition(joint: torch.fx.GraphModule, *arguments: Any, **named: Any) -> Any:
        with V.set_fake_mode(mode):
            joint_graph_passes(joint)
        return min_cut_rematerialization_partition(joint, *arguments, compiler="inductor", **named)

    backend = aot_autograd(fw_compiler=keep, bw_compiler=keep, partition_fn=partition, decompositions=select_decomp_table())
    module = make().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    with mode:
        for part in module.modules():
            for name, parameter in part._parameters.items():
                if parameter is not None:
                    part._parameters[name] = nn.Parameter(mode.from_tensor(parameter.data))
        with torch.autocast("cpu", torch.bfloat16):
            output = torch.compile(module, backend=backend, fullgraph=True, dynamic=False)(*make_inputs())
        output.backward(torch.empty_like(output))
    return graphs


def _code(graph: torch.fx.GraphModule, inputs: list[Any]) -> str:
    """Return what Inductor writes for `graph` with all tensors on a GPU."""
    gpu = torch.device("cuda", 0)
    for node in graph.graph.nodes:
        node.args = tree_map(lambda value: gpu if isinstance(value, torch.device) else value, node.args)
        if "device" in node.kwargs:
            node.kwargs = {**node.kwargs, "device": gpu}
    graph.recompile()
    mode = fake_tensor.FakeTensorMode(allow_non_fake_inputs=True)
    with mode:
        moved = [
            torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device=gpu) if isinstance(value, torch.Tensor) else value
            for value in inputs
        ]
    FakeTensorProp(graph, mode).propagate_dont_convert_inputs(*moved)
    with V.set_fake_mode(mode), mode:
        reinplace_inplaceable_ops_core(graph.graph)  # a custom kernel writes into the memory that was made for it, without a copy
        decompose_triton_kernel_wrapper_functional(graph.graph)
    graph.recompile()
    lowering = GraphLowering(graph)
    with V.set_graph_handler(lowering), V.set_fake_mode(mode), DebugContext():
        lowering.run(*moved)
        code = lowering.codegen()
    return str(getattr(code[0], "value", code[0]))


def kernels(code: str) -> Iterator[dict[str, object]]:
    """Compile each Triton kernel of `code`; yield its name, number of calls, bytes of its outputs by argument, and error or None."""
    allocations = r"(\w+) = (?:empty_strided_cuda\(|reinterpret_tensor\(\w+, )\(([\d, ]*)\)|assert_tensor_metadata\((\w+), \(([\d, ]*)\)"
    sizes = {
        own or of_library: math.prod(int(side) for side in (shape or library_shape).split(",") if side.strip())
        for own, shape, of_library, library_shape in re.findall(allocations, code)
    }
    for name, other in re.findall(r"(buf\d+) = (buf\d+); del \2  # reuse", code):
        if other in sizes:
            sizes[name] = sizes[other]
    for variable, name, source in re.findall(r"(\w+) = async_compile\.triton\('(\w+)', '''(.*?)'''", code, re.S):
        signature: dict[str, str] = literal_eval(re.search(r"'signature': (\{[^}]*\})", source)[1])  # type: ignore[index]
        calls = re.findall(rf"\b{variable}\.run\((.*?), stream=", code)
        arguments = re.sub(r"reinterpret_tensor\((\w+), .*?\), \(.*?\), \d+\)", r"\1", calls[0]).split(", ")
        outputs = {
            argument: sizes.get(buffer, 0) * _BYTES[kind]
            for (argument, kind), buffer in zip(signature.items(), arguments, strict=False)
            if "out" in argument and kind in _BYTES
        }
        yield {"kernel": name, "calls": len(calls), "outputs": outputs, "error": _compile(name, source, signature)}


def _compile(name: str, source: str, signature: dict[str, str]) -> str | None:
    header = "import triton\nimport triton.language as tl\nfrom torch._inductor.runtime import triton_helpers\n"
    header += "from torch._inductor.runtime.triton_helpers import libdevice, math as tl_math\n"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, f"{name}.py")
        path.write_text(header + source[source.index("@triton.jit") :])
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        function = getattr(module, name)
        # Custom kernels state theirs, Inductor picks those of its own by heuristics.
        stated: dict[str, int] = literal_eval(re.search(r"'constants': (\{[^}]*\})", source)[1])  # type: ignore[index]
        chosen = {key: stated.get(key, _BLOCK_SIZES.get(key, 1)) for key, kind in signature.items() if kind == "constexpr"}
        constants = {(function.arg_names.index(key),): value for key, value in chosen.items()}
        try:
            triton.compile(triton.compiler.ASTSource(fn=function, signature=signature, constexprs=constants), target=_H100)
        except Exception as error:  # any: it is the result
            return f"{error} {error.__cause__}"
    return None


def _channels_last(*shape: int) -> torch.Tensor:
    return torch.empty(*shape, dtype=torch.bfloat16).contiguous(memory_format=torch.channels_last).requires_grad_()


def _noise(*, augmentation: float) -> list[Graph]:
    config = load_config("celebahq256-b")
    noise = BatchNoise(build_diffusion(config.diffusion), 0, True, augmentation)
    mode = fake_tensor.FakeTensorMode(allow_non_fake_inputs=True)
    with mode:
        inputs = [
            torch.empty(IMAGES, 3, 256, 256, dtype=torch.uint8),
            torch.empty(IMAGES, dtype=torch.int64),
            torch.empty((), dtype=torch.int64),
        ]
        return [(make_fx(lambda *tensors: tuple(noise(*tensors)), decomposition_table=select_decomp_table())(*inputs), inputs)]


def _jump() -> list[Graph]:
    jump = JumpNoise(build_diffusion(load_config("celebahq256-b").diffusion).path, 4, 0)
    with fake_tensor.FakeTensorMode(allow_non_fake_inputs=True):
        z_t, x = (torch.empty(IMAGES, 3, 256, 256).contiguous(memory_format=torch.channels_last) for _ in range(2))
        inputs = [z_t, x, torch.empty(IMAGES), torch.empty(IMAGES, dtype=torch.int64), torch.empty((), dtype=torch.int64)]
        return [(make_fx(jump, decomposition_table=select_decomp_table())(*inputs), inputs)]


def _part(name: str) -> list[Graph]:
    """Return the graphs of one part of `celebahq256-b`."""
    network = load_config("celebahq256-b").network
    channels, width = network.channels[0], network.width
    side = network.image_px // network.stem_px
    if name == "jump":
        return _jump()
    if name in _NOISE:
        return _noise(augmentation=0.15 if name == "noise-augmented" else 0.0)
    if name == "residual-block":
        return _graphs(
            lambda: ResidualBlock(channels, width), lambda: [_channels_last(IMAGES, channels, side, side), torch.empty(IMAGES, width)]
        )
    if name == "transformer-block":
        tokens = (network.image_px // network.total_stride_px) ** 2
        angles = [torch.empty(tokens, width // network.heads // 2) for _ in range(2)]
        inputs = [torch.empty(IMAGES, tokens, width, dtype=torch.bfloat16, requires_grad=True), torch.empty(IMAGES, width)]
        return _graphs(lambda: Block(width, network.heads, modern=True, dropout=0.1), lambda: [*inputs, tuple(angles)])  # type: ignore[list-item]
    assert name == "output"

    class Output(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.decoder = ResidualDecoder(network)

        def forward(self, h: torch.Tensor) -> torch.Tensor:
            return self.decoder.to_image(h)

    return _graphs(Output, lambda: [_channels_last(IMAGES, channels, side, side)])


def main(name: str) -> None:
    """Print the kernels of one part."""
    _trace_like_cuda()
    graphs = _part(name)
    _pretend()
    options = INDUCTOR_OPTIONS if name in (*_NOISE, "jump") else NETWORK_OPTIONS
    with inductor.patch({**options, "compile_threads": 1, "fx_graph_cache": False}):
        for graph, inputs in graphs:
            for kernel in kernels(_code(graph, inputs)):
                print(json.dumps(kernel))


if __name__ == "__main__":
    main(sys.argv[1])
