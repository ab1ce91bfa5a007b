"""Files of a configuration: missing, of another format, or named almost like a preset."""

from pathlib import Path

import pytest

from components.errors import BadInput
from pipeline.config import load_config


def test_a_preset_that_does_not_exist_names_the_nearest() -> None:
    with pytest.raises(BadInput, match="neither a preset nor a file") as raised:
        load_config("smok")
    assert "did you mean 'smoke'" in str(raised.value.hint)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "does not exist"),
        (b"", "is missing"),
        (b"[data\n", "is not valid TOML.*line 1"),
        (b"[data]\nname = 'a'\nname = 'b'\n", "is not valid TOML"),
        (b"\xff\xfe\x00", "is not a UTF-8 text"),
        (b"#" * (2**20 + 1), "is larger than"),
        (b"data = 3\n", "data"),
        (b"[data]\nsource = 2026-01-01\n", "data.source: 2026-01-01 is of a kind that is not accepted"),
    ],
)
def test_a_file_that_cannot_be_used_is_described(tmp_path: Path, content: bytes | None, message: str) -> None:
    path = tmp_path / "run.toml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(BadInput, match=message):
        load_config(str(path))


def test_a_directory_is_not_a_configuration(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="cannot be read"):
        load_config(str(tmp_path))


def test_a_file_with_a_byte_order_mark_is_read(tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_bytes(b"\xef\xbb\xbf" + _preset_text("smoke"))
    assert load_config(str(path)) == load_config("smoke")


def _preset_text(name: str) -> bytes:
    from importlib.resources import files

    return (files("pipeline") / "presets" / f"{name}.toml").read_bytes()
