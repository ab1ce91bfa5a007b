"""Weights whose bytes are those of their manifest and are no weights: malformed headers, and numbers that are not finite."""

import hashlib
import json
import struct
from pathlib import Path

import pytest
import torch
from celebdit_testing.recipes import tiny_network
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from components.errors import DataRefused
from components.weights.find import find_weights
from model.canonical import canonical_json
from model.checkpoint import CheckpointState, publish
from model.checkpoint_manifest import MANIFEST_FILE
from model.denoiser import build_denoiser

CPU = torch.device("cpu")
FILE = "weights.safetensors"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint that can be drawn from."""
    network = tiny_network()
    tensors = {"weights": dict(build_denoiser(network).state_dict())}
    facts = {"identity": {"network": network.model_dump(mode="json"), "diffusion": {}}}
    folder = publish(CheckpointState(step=1, tensors=tensors, facts=facts), tmp_path_factory.mktemp("whole")).directory
    find_weights(str(folder), ema=None, context=None).generator(CPU)
    return folder


def draw_from(folder: Path, raw: bytes) -> None:
    """Put other bytes in place of the weights, with a manifest that fits, and load them."""
    (folder / FILE).write_bytes(raw)
    manifest = json.loads((folder / MANIFEST_FILE).read_bytes())
    manifest["files"][FILE] |= {"sha256": hashlib.sha256(raw).hexdigest(), "bytes": len(raw)}
    (folder / MANIFEST_FILE).write_bytes(canonical_json(manifest))
    find_weights(str(folder), ema=None, context=None).generator(CPU)


def with_header(header: bytes, data: bytes = b"") -> bytes:
    return struct.pack("<Q", len(header)) + header + data


def entry(**fields: object) -> bytes:
    return json.dumps({"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]} | fields}).encode()


HEADERS = {
    "nothing": b"",
    "a length alone": struct.pack("<Q", 8),
    "a length beyond the file": struct.pack("<Q", 2**63) + b"{}",
    "no JSON": with_header(b"{" * 40),
    "deep JSON": with_header(b"[" * 100_000),
    "a list": with_header(b"[]"),
    "no tensors": with_header(b"{}"),
    "an unknown type": with_header(entry(dtype="F33"), bytes(4)),
    "a negative shape": with_header(entry(shape=[-1]), bytes(4)),
    "a huge shape": with_header(entry(shape=[2**62, 2**62]), bytes(4)),
    "offsets beyond the file": with_header(entry(data_offsets=[0, 2**40]), bytes(4)),
    "offsets backwards": with_header(entry(data_offsets=[4, 0]), bytes(4)),
    "an odd name": with_header(json.dumps({"\udc80": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode(), bytes(4)),
    "other text": b"#!/bin/sh\nexit 0\n",
}


@pytest.mark.parametrize("kind", HEADERS)
def test_a_malformed_header_is_refused(kind: str, whole: Path) -> None:
    with pytest.raises(DataRefused):
        draw_from(whole, HEADERS[kind])


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    raw=st.binary(max_size=200)
    | st.binary(max_size=200).map(with_header)
    | st.text(max_size=100).map(lambda text: with_header(text.encode()))
)
def test_any_bytes_are_refused(raw: bytes, whole: Path) -> None:
    with pytest.raises(DataRefused):
        draw_from(whole, raw)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_weights_that_are_not_finite_are_refused(value: float, tmp_path: Path) -> None:
    network = tiny_network()
    tensors = dict(build_denoiser(network).state_dict())
    name = sorted(tensors)[0]
    tensors[name] = tensors[name].clone()
    tensors[name].view(-1)[-1] = value
    facts = {"identity": {"network": network.model_dump(mode="json"), "diffusion": {}}}
    folder = publish(CheckpointState(step=1, tensors={"weights": tensors}, facts=facts), tmp_path).directory
    with pytest.raises(DataRefused, match=f"the weights are not finite: {name}"):
        find_weights(str(folder), ema=None, context=None).generator(CPU)
