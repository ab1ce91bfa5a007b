"""Any value, text or bytes, however large or deep, are a configuration or are described in a line."""

import re
import time
import tomllib
from collections.abc import Sequence
from pathlib import Path

import pytest
import tomli_w
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from components.errors import BadInput
from pipeline.config import RunConfig, load_config

VALUES = st.recursive(
    st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | st.dates() | st.datetimes() | st.times(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)

SECTIONS: dict[str, type[BaseModel]] = {name: field.annotation for name, field in RunConfig.model_fields.items()}  # type: ignore[misc]

PATHS = [(section, key) for section, kind in SECTIONS.items() for key in kind.model_fields]


def loaded_or_described(file: Path | str, overrides: Sequence[str] = (), *, line: str = "") -> RunConfig | None:
    """What the configuration is, or None if it is refused with one line for each problem, which begins with the pattern `line`."""
    try:
        return load_config(str(file), overrides)
    except BadInput as error:
        lines = error.message.split("\n")
        assert lines
        assert all(described.isprintable() and len(described) < 2000 for described in lines)
        assert all(re.match(line, described) for described in lines), lines
        return None


@given(path=st.sampled_from(PATHS), value=VALUES)
def test_any_value_anywhere_in_a_file_is_either_accepted_or_described(
    path: tuple[str, str], value: object, tmp_path_factory: pytest.TempPathFactory
) -> None:
    file = tmp_path_factory.getbasetemp() / "any-value.toml"
    file.write_text(tomli_w.dumps({"base": "smoke", path[0]: {path[1]: value}}))
    assert path[1] in tomllib.loads(file.read_text())[path[0]], "the file holds the value"
    config = loaded_or_described(file, line=rf"(unknown key )?({'|'.join(SECTIONS)})[.:]")
    if config is not None:
        assert RunConfig.model_validate_json(config.canonical()) == config


@given(path=st.sampled_from(PATHS), value=VALUES)
def test_any_value_as_an_override_is_either_accepted_or_described(path: tuple[str, str], value: object) -> None:
    text = tomli_w.dumps({"x": [value]}).removeprefix("x = ").strip().removeprefix("[").removesuffix("]").strip().removesuffix(",")
    config = loaded_or_described("smoke", [f"{'.'.join(path)}={text}"])
    if config is not None:
        assert RunConfig.model_validate_json(config.canonical()) == config


@given(st.text(max_size=200))
def test_any_text_is_either_an_override_or_described(text: str) -> None:
    loaded_or_described("smoke", [text])
    loaded_or_described("smoke", [f"training.{text}"])
    loaded_or_described("smoke", [f"data.name={text}"])


@given(raw=st.binary(max_size=300) | st.text(alphabet="[]{}=.,#'\"\\\n ab1-:TZ_", max_size=300).map(str.encode))
def test_any_bytes_are_either_a_configuration_or_described(raw: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    file = tmp_path_factory.getbasetemp() / "any-bytes.toml"
    file.write_bytes(raw)
    loaded_or_described(file)


DEEP = 5000


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (f"[data]\nname = {'[' * DEEP}{']' * DEEP}", "nested more than 16 levels"),
        (f"[data]\nname = {'{a=' * DEEP}1{'}' * DEEP}", "nested more than 16 levels"),
        (f"[data]\nname = {'[' * 20}{']' * 20}", "nested more than 16 levels"),
        (f"{'.'.join(['a'] * 20_000)} = 1", "more than 64 parts"),
        (f"[{'.'.join(['a'] * 20_000)}]\nb = 1", "more than 64 parts"),
        (f"[data]\nx = {{{'.'.join(['a'] * 20_000)} = 1}}", "more than 64 parts"),
        (f"[training]\nseed = {'9' * 5000}", "more than 128 bits"),
        (f"[training]\nseed = 0x{'f' * 5000}", "more than 128 bits"),
        ('base = "a\\u0000.toml"', "cannot be read"),
        (f'base = "{"b" * 300}"', "neither a preset nor a file"),
        (f'base = "{"b" * 300}.toml"', "cannot be read"),
        ("base = 1979-05-27", "base of .* is datetime"),
    ],
)
def test_a_file_beyond_all_bounds_is_described_in_a_line_and_at_once(tmp_path: Path, text: str, reason: str) -> None:
    file = tmp_path / "run.toml"
    file.write_text(text)
    began_s = time.monotonic()
    with pytest.raises(BadInput, match=reason) as raised:
        load_config(str(file))
    assert len(raised.value.message) < 500
    assert time.monotonic() - began_s < 10


@pytest.mark.parametrize(
    ("override", "reason"),
    [
        (f"{'.'.join(['a'] * 20_000)}=1", "is not an override"),
        (f"training.{'b' * 5000}=1", "unknown key training"),
        (f"training.seed={'9' * 5000}", "more than 128 bits"),
        (f"training.seed=0x{'f' * 5000}", "more than 128 bits"),
        (f"data.name={'[' * DEEP}", "nested more than 16 levels"),
        ("[training]\n[data]\nname=1", "is not an override"),
        ("training.seed=1\n[data]", "training.seed: .*integer"),
        ("training={}", "is not an override"),
    ],
)
def test_an_override_beyond_all_bounds_is_described(override: str, reason: str) -> None:
    with pytest.raises(BadInput, match=reason):
        load_config("smoke", [override])


def test_a_name_longer_than_any_file_is_neither_a_preset_nor_a_file() -> None:
    with pytest.raises(BadInput, match=r"ppp\.\.\. \(302 characters\) is neither a preset nor a file"):
        load_config("p" * 300)
    with pytest.raises(BadInput, match="cannot be read: File name too long"):
        load_config(f"{'p' * 300}.toml")
