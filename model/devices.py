"""Peak rates and memory of GPUs, from the data sheets of their vendors; a GPU is found by the name that CUDA gives it.

Rates are dense, with float32 accumulation; float32 is at full precision, without TF32. Memory is that of the usual model.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class DeviceSpec:
    """A GPU as its vendor describes it."""

    name: str
    bfloat16_tflops: float
    float32_tflops: float
    memory_gb: float

    def peak_flops(self, *, bfloat16: bool) -> float:
        """Return the peak rate in FLOP/s."""
        return (self.bfloat16_tflops if bfloat16 else self.float32_tflops) * 1e12


DEVICES = (
    DeviceSpec("B200", 2250.0, 80.0, 180),
    DeviceSpec("H200", 989.0, 67.0, 141),
    DeviceSpec("GH200", 989.0, 67.0, 96),
    DeviceSpec("H100", 989.0, 67.0, 80),
    DeviceSpec("H100 NVL", 835.0, 60.0, 94),
    DeviceSpec("H100 PCIe", 756.0, 51.0, 80),
    DeviceSpec("A100", 312.0, 19.5, 80),
    DeviceSpec("L40S", 362.0, 91.6, 48),
    DeviceSpec("L40", 181.0, 90.5, 48),
    DeviceSpec("L4", 121.0, 30.3, 24),
    DeviceSpec("A10G", 70.0, 31.2, 24),
    DeviceSpec("V100", 125.0, 15.7, 32),
    DeviceSpec("T4", 65.0, 8.1, 16),
    DeviceSpec("RTX 5090", 210.0, 104.8, 32),
    DeviceSpec("RTX 4090", 165.0, 82.6, 24),
)


def device_named(cuda_name: str) -> DeviceSpec | None:
    """Return the GPU that CUDA calls `cuda_name`, like "NVIDIA H100 PCIe", or None for one that is not in the table.

    Of several whose words all occur in the name, it is the one with the most words.
    """
    words = set(cuda_name.replace("-", " ").split())
    matching = [device for device in DEVICES if set(device.name.split()) <= words]
    return max(matching, key=lambda device: len(device.name.split()), default=None)
