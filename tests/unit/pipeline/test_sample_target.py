"""Where `celebdit sample` writes: a file with the name of an image is an image, never a folder with that name."""

from pathlib import Path

import numpy as np
import pytest
from celebdit_testing.command import celebdit_here
from PIL import Image

from pipeline.commands.sample import _check_target, _write


def test_a_name_in_capitals_is_a_png_too(tmp_path: Path) -> None:
    target = tmp_path / "FACES.PNG"
    _check_target(target, 2)
    _write(np.zeros((2, 8, 8, 3), np.uint8), target, 0)
    with Image.open(target) as image:
        assert image.format == "PNG"


@pytest.mark.parametrize("name", ["faces.jpg", "faces.JPEG", "faces.webp"])
def test_another_format_is_refused_before_anything_starts(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    done = celebdit_here("sample", "0" * 16, "--out", str(tmp_path / name), home=tmp_path / "home", capture=capsys)
    assert (done.code, "PNG, the one format" in done.err) == (2, True), done.err
    assert list(tmp_path.iterdir()) == []


def test_a_folder_may_have_any_name(tmp_path: Path) -> None:
    _check_target(tmp_path / "run-0.1", 2)
    (tmp_path / "old.jpg").mkdir()
    _check_target(tmp_path / "old.jpg", 2)
