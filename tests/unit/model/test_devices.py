"""GPUs are found by the names that CUDA gives them."""

import pytest

from model.devices import DEVICES, device_named


@pytest.mark.parametrize(
    ("cuda_name", "name"),
    [
        ("NVIDIA H200", "H200"),
        ("NVIDIA H100 80GB HBM3", "H100"),
        ("NVIDIA H100 PCIe", "H100 PCIe"),
        ("NVIDIA H100 NVL", "H100 NVL"),
        ("NVIDIA GH200 480GB", "GH200"),
        ("NVIDIA A100-SXM4-80GB", "A100"),
        ("NVIDIA L4", "L4"),
        ("NVIDIA L40", "L40"),
        ("NVIDIA L40S", "L40S"),
        ("NVIDIA GeForce RTX 4090", "RTX 4090"),
        ("NVIDIA GeForce RTX 4080", None),
        ("Some GPU", None),
    ],
)
def test_a_device_is_found_by_complete_words_the_most_of_them(cuda_name: str, name: str | None) -> None:
    device = device_named(cuda_name)
    assert (None if device is None else device.name) == name


def test_every_device_is_found_by_its_own_name() -> None:
    assert [device_named(f"NVIDIA {device.name}") for device in DEVICES] == list(DEVICES)
