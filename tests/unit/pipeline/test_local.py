"""What the local runner gives to steps, which run in another folder than the command."""

from pathlib import Path

import pytest

from pipeline.config import load_config
from pipeline.local import with_absolute_paths


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("images.zip", "{here}/images.zip"),
        (".", "{here}"),
        ("../x", "{here}/../x"),
        ("~/faces", "{home}/faces"),
        ("/data/faces.tar", "/data/faces.tar"),
        ("file:///data/faces.tar", "file:///data/faces.tar"),
        ("s3://bucket/faces.zip", "s3://bucket/faces.zip"),
        ("synthetic://?count=4", "synthetic://?count=4"),
    ],
)
def test_a_relative_source_means_the_same_in_a_step(source: str, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    config = with_absolute_paths(load_config("smoke", [f"data.source={source}"]))
    assert config.data.source == expected.format(here=tmp_path, home=tmp_path / "home")


def test_relative_weights_mean_the_same_in_a_step_and_nothing_else_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    sha256 = "0" * 64
    relative = load_config("smoke", [
        "evaluation.extractor=inception-v3-compat", "evaluation.weights=pt_inception.pth", f"evaluation.weights_sha256={sha256}",
        "data.source=s3://bucket/x.zip",
    ])  # fmt: skip
    config = with_absolute_paths(relative)
    assert config.evaluation.weights == str(tmp_path / "pt_inception.pth")
    assert config.model_dump(exclude={"evaluation": {"weights"}}) == relative.model_dump(exclude={"evaluation": {"weights"}})
