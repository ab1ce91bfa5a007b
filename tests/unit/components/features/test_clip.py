"""CLIP's networks: tensors of a TorchScript archive are read without its code, and give torch-fidelity's own features."""

import pickle
import warnings
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch_fidelity.feature_extractor_clip import CLIPVisual, FeatureExtractorCLIP

from components.errors import DataRefused
from components.features.clip import ClipExtractor, check_network, load_clip
from components.features.fidelity_extractors import create_extractor
from components.features.script_archive import is_script_archive, read_script_tensors

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:.*torch.jit.*", "ignore::torch.jit.TracerWarning")
NAME, LAYERS, CPU = "clip-vit-b-32", ["clip"], torch.device("cpu")


class Clip(nn.Module):
    """As much of CLIP as torch-fidelity looks at, a few layers wide."""

    def __init__(self, vision_layers: Any) -> None:
        super().__init__()
        self.visual = CLIPVisual(16, 64, vision_layers, 64 if isinstance(vision_layers, int) else 8, 32).visual
        self.text_projection = nn.Parameter(torch.randn(4, 16))
        self.logit_scale = nn.Parameter(torch.ones([]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.visual(x)  # type: ignore[no-any-return]


class Runs(nn.Module):
    """A module of TorchScript that creates a file when it is loaded."""

    def __init__(self, marker: str) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2))
        self.marker = marker

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x

    @torch.jit.export  # type: ignore[untyped-decorator]
    def __getstate__(self) -> str:
        return self.marker

    @torch.jit.export  # type: ignore[untyped-decorator]
    def __setstate__(self, marker: str) -> None:
        self.marker = marker
        self.training = False
        self.weight = torch.from_file(marker, True, 2)


class Holder(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.visual = inner

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.visual(x)  # type: ignore[no-any-return]


@pytest.fixture(scope="module", params=[2, (1, 1, 1, 1)], ids=["transformer", "resnet"])
def archive(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("clip") / "clip.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.trace(Clip(request.param).eval(), torch.randn(1, 3, 64, 64)).half().save(str(path))
    return path


def images() -> torch.Tensor:
    return torch.randint(0, 256, (3, 3, 40, 40), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def refuse(*_: object, **__: object) -> None:
    raise AssertionError("torch.jit.load runs code of the archive")


def test_the_features_are_those_of_torch_fidelity_and_no_code_is_loaded(archive: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = FeatureExtractorCLIP(NAME, LAYERS, feature_extractor_weights_path=str(archive), verbose=False).eval()
    state = torch.jit.load(str(archive)).state_dict()
    monkeypatch.setattr(torch.jit, "load", refuse)
    tensors = read_script_tensors(archive)
    assert is_script_archive(archive)
    assert {name: tensor.dtype for name, tensor in tensors.items()} == {name: tensor.dtype for name, tensor in state.items()}
    assert all(torch.equal(tensor, state[name]) for name, tensor in tensors.items())
    with torch.inference_mode():
        mine, expected = ClipExtractor(NAME, LAYERS, tensors)(images())[0], theirs(images())[0]
    assert expected.std() > 0.01
    assert torch.equal(mine, expected)


def test_code_that_runs_while_an_archive_is_loaded_does_not_run(tmp_path: Path) -> None:
    marker, path = tmp_path / "ran", tmp_path / "evil.pt"
    torch.jit.script(Holder(Runs(str(marker)))).save(str(path))
    torch.jit.load(str(path))
    assert marker.exists(), "the archive runs code where it is loaded"
    marker.unlink()
    with pytest.raises(DataRefused, match="cannot be loaded"):
        create_extractor(NAME, LAYERS, path, "evil.pt", CPU)
    assert not marker.exists()


class Opens:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.mkdir, (self.marker,)


@pytest.mark.parametrize("as_archive", [True, False])
def test_a_pickle_that_names_more_than_tensors_is_refused(tmp_path: Path, as_archive: bool) -> None:
    path, marker = tmp_path / "poison.pt", tmp_path / "ran"
    pickled = pickle.dumps(Opens(marker), protocol=2)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("poison/data.pkl", pickled)
        archive.writestr("poison/version", "3")
        if as_archive:
            archive.writestr("poison/constants.pkl", pickled)
    pickle.loads(pickled)
    assert marker.exists(), "the pickle runs where nothing refuses it"
    marker.rmdir()
    with pytest.raises(DataRefused, match="cannot be loaded"):
        create_extractor(NAME, LAYERS, path, "poison.pt", CPU)
    assert not marker.exists()


@pytest.mark.parametrize("cut", ["bytes", "tensor"])
def test_a_damaged_archive_is_refused(archive: Path, tmp_path: Path, cut: str) -> None:
    path = tmp_path / "cut.pt"
    if cut == "bytes":
        path.write_bytes(archive.read_bytes()[:-500])
    else:
        with zipfile.ZipFile(archive) as old, zipfile.ZipFile(path, "w") as new:
            for entry in old.infolist():
                content = old.read(entry)
                new.writestr(entry.filename, content[:-2] if entry.filename.endswith("/data/0") else content)
    with pytest.raises(DataRefused, match="cannot be loaded"):
        create_extractor(NAME, LAYERS, path, "cut.pt", CPU)


def test_a_plain_state_dict_is_read_and_another_network_is_refused(archive: Path, tmp_path: Path) -> None:
    tensors = read_script_tensors(archive)
    torch.save(tensors, tmp_path / "plain.pth")
    assert not is_script_archive(tmp_path / "plain.pth")
    with pytest.raises(ValueError, match=r"clip-vit-b-32 has"):
        load_clip(NAME, LAYERS, tmp_path / "plain.pth")
    if "visual.proj" in tensors:
        with pytest.raises(ValueError, match="which is a ResNet"):
            check_network("clip-rn50", tensors)
    else:
        assert load_clip("clip-rn50", LAYERS, tmp_path / "plain.pth").resolution == 64


def test_the_published_sizes_are_accepted() -> None:
    for name, (width, patch_px, positions) in {
        "clip-vit-b-32": (768, 32, 50),
        "clip-vit-b-16": (768, 16, 197),
        "clip-vit-l-14": (1024, 14, 257),
        "clip-vit-l-14-336px": (1024, 14, 577),
    }.items():
        visual = CLIPVisual(8, patch_px * round((positions - 1) ** 0.5), 1, width, patch_px).visual.to("meta")
        check_network(name, {f"visual.{key}": tensor for key, tensor in visual.state_dict().items()})
