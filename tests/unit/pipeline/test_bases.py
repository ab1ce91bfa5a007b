"""Files that begin with another configuration as their base."""

from pathlib import Path

import pytest

from components.errors import BadInput
from pipeline.config import load_config


@pytest.mark.parametrize("base", ["celebahq256-b", "mine.toml", "celebahq256"])
def test_a_file_changes_only_what_it_names_of_its_base(tmp_path: Path, base: str) -> None:
    (tmp_path / "mine.toml").write_text('base = "celebahq256-b"\n')
    network = "[network]\nchannels = [96, 192, 256]\nres_blocks = [2, 2, 1]\nlatent_channels = 128\nwidth = 768\ndepth = 12\nheads = 12\n"
    own = network if base == "celebahq256" else ""
    path = tmp_path / "run.toml"
    path.write_text(f'base = "{base}"\n{own}[training]\nmicrobatch_images = 128\nseed = 7\n')
    assert load_config(str(path)) == load_config("celebahq256-b", ["training.seed=7"])


@pytest.mark.parametrize(
    ("content", "message", "hint"),
    [
        ('base = "celebahq265"', "base 'celebahq265' of .*run.toml is neither a preset nor a file", "did you mean 'celebahq256'?"),
        ('base = "gone.toml"', "gone.toml does not exist", "presets"),
        ("base = 3", "base of .*run.toml is 3", 'base = "NAME"'),
        ('base = "run.toml"', "base 'run.toml' of .*run.toml leads back to itself: .*run.toml -> .*run.toml", "remove one"),
        (
            'base = "other.toml"',
            "base 'run.toml' of .*other.toml leads back to itself: .*run.toml -> .*other.toml -> .*run.toml",
            "remove one",
        ),
    ],
)
def test_a_base_that_cannot_be_used_is_described(tmp_path: Path, content: str, message: str, hint: str) -> None:
    (tmp_path / "other.toml").write_text('base = "run.toml"')
    (tmp_path / "run.toml").write_text(content)
    with pytest.raises(BadInput, match=message) as raised:
        load_config(str(tmp_path / "run.toml"))
    assert hint in str(raised.value.hint)


def test_a_base_is_not_a_preset() -> None:
    with pytest.raises(BadInput, match="'celebahq256' is neither a preset nor a file"):
        load_config("celebahq256")
