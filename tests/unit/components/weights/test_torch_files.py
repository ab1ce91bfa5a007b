"""Third-party torch files: plain ones are read, all others are refused before anything in them runs."""

import io
import os
import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch

from components.errors import BadInput, DataRefused
from components.weights.torch_files import read_tensors

LIMIT = 10**6


class Opens:
    """Unpickling it creates a file: what a hostile checkpoint would do worse."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, (str(self.marker),))


class Harmless(torch.nn.Module):
    pass


def saved(folder: Path, value: object) -> Path:
    path = folder / "weights.pth"
    torch.save(value, path)
    return path


@pytest.mark.parametrize("kind", [dict, OrderedDict])
def test_a_state_dictionary_is_read(tmp_path: Path, kind: type) -> None:
    module = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.LayerNorm(2))
    tensors = read_tensors(saved(tmp_path, kind(module.state_dict())), max_bytes=LIMIT)
    assert list(tensors) == list(module.state_dict())
    assert all(torch.equal(tensors[name], tensor) for name, tensor in module.state_dict().items())


def test_a_modules_own_state_dictionary_with_its_metadata_is_read(tmp_path: Path) -> None:
    state = torch.nn.Linear(3, 2).state_dict()
    assert hasattr(state, "_metadata")
    assert list(read_tensors(saved(tmp_path, state), max_bytes=LIMIT)) == ["weight", "bias"]


def test_a_poisoned_pickle_is_refused_and_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TORCH_FORCE_WEIGHTS_ONLY_LOAD", raising=False)  # the features set it for their whole process
    marker = tmp_path / "ran"
    path = saved(tmp_path, {"weight": torch.zeros(2), "rest": Opens(marker)})
    with pytest.raises(DataRefused, match=r"mkdir'; nothing in it was executed"):
        read_tensors(path, max_bytes=LIMIT)
    assert not marker.exists()
    torch.load(path, weights_only=False)
    assert marker.exists(), "the file is really poisoned"


def rewritten(path: Path, pickled: bytes, **options: Any) -> Path:
    """Put another pickle into a torch file."""
    raw = io.BytesIO()
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(raw, "w", **options) as new:
        for item in old.infolist():
            new.writestr(item.filename, pickled if item.filename.endswith("data.pkl") else old.read(item))
    path.write_bytes(raw.getvalue())
    return path


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_a_poison_in_any_pickle_protocol_is_refused(tmp_path: Path, protocol: int) -> None:
    marker = tmp_path / "ran"
    pickled = pickle.dumps({"a": Opens(marker)}, protocol=protocol)
    path = rewritten(saved(tmp_path, {"weight": torch.zeros(2)}), pickled)
    with pytest.raises(DataRefused, match="nothing in it was executed"):
        read_tensors(path, max_bytes=LIMIT)
    assert not marker.exists()
    pickle.loads(pickled)
    assert marker.exists(), "the pickle is really poisoned"


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"epoch": 3, "model": {"weight": torch.zeros(2)}}, "entry 'epoch' is a int"),
        ({1: torch.zeros(2)}, "entry '1' is a Tensor"),
        ([torch.zeros(2)], "holds a list, expected a dictionary"),
        (torch.zeros(2), "holds a Tensor, expected a dictionary"),
        (Harmless(), "is not a plain dictionary of tensors"),
        ({"weight": torch.zeros(300_000)}, "holds 1200"),
    ],
    ids=["training state", "number as name", "list", "tensor", "module", "too large"],
)
def test_anything_but_a_plain_dictionary_is_refused(tmp_path: Path, value: object, message: str) -> None:
    with pytest.raises(DataRefused, match=message):
        read_tensors(saved(tmp_path, value), max_bytes=LIMIT)


def test_a_compressed_archive_is_refused(tmp_path: Path) -> None:
    path = saved(tmp_path, {"weight": torch.zeros(2)})
    with zipfile.ZipFile(path) as archive:
        pickled = archive.read(next(name for name in archive.namelist() if name.endswith("data.pkl")))
    with pytest.raises(DataRefused, match="is compressed"):
        read_tensors(rewritten(path, pickled, compression=zipfile.ZIP_DEFLATED), max_bytes=LIMIT)


def test_damage_is_one_line_about_the_file(tmp_path: Path) -> None:
    raw = saved(tmp_path, {"weight": torch.zeros(2)}).read_bytes()
    path = tmp_path / "damaged.pth"
    for damaged in (b"", b"\x00" * 100, raw[: len(raw) // 2], pickle.dumps({"weight": 1}), raw[:40] + b"\xff" * 40 + raw[80:]):
        path.write_bytes(damaged)
        with pytest.raises(DataRefused, match=str(path)) as raised:
            read_tensors(path, max_bytes=LIMIT)
        assert "\n" not in raised.value.message


def test_a_missing_file_is_bad_input(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="No such file"):
        read_tensors(tmp_path / "nothing.pth", max_bytes=LIMIT)
