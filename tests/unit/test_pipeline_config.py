"""Configurations: presets, files, overrides, and every way to get them wrong."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from components.errors import BadInput
from pipeline.config import RunConfig, load_config, preset_names, validated


@pytest.mark.parametrize("preset", preset_names())
def test_every_preset_is_valid_and_survives_its_canonical_form(preset: str) -> None:
    config = load_config(preset)
    assert RunConfig.model_validate_json(config.canonical()) == config
    assert validated(json.loads(config.canonical())).digest() == config.digest()
    assert set(config.sections()) == set(RunConfig.model_fields)


def test_overrides_are_typed_values_or_plain_texts() -> None:
    config = load_config(
        "smoke",
        ["training.total_steps=7", "optimizer.lr_peak=2e-3", "data.name=mine", "network.channels=[16, 32]", 'gate.at_most."eval/x"=3.5'],
    )
    assert config.training.total_steps == 7
    assert config.optimizer.lr_peak == 2e-3
    assert config.data.name == "mine"
    assert config.network.channels == (16, 32)
    assert config.gate.at_most == {"eval/x": 3.5}


def test_an_override_without_a_value_unsets_what_the_preset_sets() -> None:
    unset = ("evaluation.weights=", "evaluation.weights_sha256=")
    config = load_config("celebahq256-s", ["evaluation.extractor=random-conv", *unset])
    assert (config.evaluation.extractor, config.evaluation.weights, config.evaluation.weights_sha256) == ("random-conv", None, None)
    with pytest.raises(BadInput, match=r"data\.name"):
        load_config("smoke", ["data.name="])


@pytest.mark.parametrize(
    ("override", "said", "hint"),
    [
        ("training.total_stepz=3", "unknown key training.total_stepz", "did you mean training.total_steps?"),
        ("trainin.total_steps=3", "unknown key trainin", "did you mean training?"),
        ("training.total_steps='8'", "training.total_steps: .*valid integer.*'8'", ""),
        ("training.total_steps=8.0", "training.total_steps: .*valid integer", ""),
        ("training.total_steps=true", "training.total_steps: .*valid integer", ""),
        ("training.total_steps=0", "training.total_steps: .*greater than 0", ""),
        ("optimizer.lr_peak=nan", "not finite", ""),
        ("optimizer.lr_peak=inf", "not finite", ""),
        ("optimizer.lr_peak=-1.0", "optimizer.lr_peak: .*greater than 0", ""),
        ("optimizer.lr_peak=2", "optimizer.lr_peak: .*less than or equal to 1", ""),
        ("training.batch_images=31", "31 cannot be shared by 2 processes: use 30 or 32", ""),
        ("network.patch_px=3", "image_px 32 must be a multiple", ""),
        ("network.heads=5", "width 32 must be a multiple of heads 5", ""),
        ("data.image_px=64", "data.image_px 64 and network.image_px 32", ""),
        ("sampling.ema=other", "sampling.ema 'other' is not tracked", ""),
        ("training.checkpoints_to_keep=1", "training.checkpoints_to_keep: .*greater than or equal to 2", ""),
        ("training.seed=9223372036854775808", "training.seed", ""),
        ("data.name=No Such Name", "data.name", ""),
        ("evaluation.extractor=inception-v3-compat", "needs weights and weights_sha256", ""),
        ("nodots=1", "is not an override", "section.key=value"),
        ("training.total_steps", "is not an override", "section.key=value"),
        ("data.name.deeper=1", "data.name", ""),
        ("diffusion.path=vp_zero_snr", None, ""),
    ],
)
def test_a_wrong_override_is_described_in_one_line(override: str, said: str | None, hint: str) -> None:
    if said is None:
        load_config("smoke", [override])
        return
    with pytest.raises(BadInput, match=said) as raised:
        load_config("smoke", [override])
    assert "\n" not in raised.value.message
    assert hint in (raised.value.hint or "")


def test_a_preset_that_does_not_exist_names_the_nearest() -> None:
    with pytest.raises(BadInput, match="neither a preset nor a file") as raised:
        load_config("smok")
    assert "did you mean 'smoke'" in str(raised.value.hint)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "does not exist"),
        (b"", "is missing"),
        (b"[data\n", "is not valid TOML.*line 1"),
        (b"[data]\nname = 'a'\nname = 'b'\n", "is not valid TOML"),
        (b"\xff\xfe\x00", "is not a UTF-8 text"),
        (b"#" * (2**20 + 1), "is larger than"),
        (b"data = 3\n", "data"),
        (b"[data]\nsource = 2026-01-01\n", "kind that is not accepted"),
    ],
)
def test_a_file_that_cannot_be_used_is_described(tmp_path: Path, content: bytes | None, said: str) -> None:
    path = tmp_path / "run.toml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(BadInput, match=said):
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


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
PATHS = [(section, key) for section, field in RunConfig.model_fields.items() for key in field.annotation.model_fields]  # type: ignore[union-attr]


@given(st.sampled_from(PATHS), VALUES)
def test_any_value_anywhere_is_either_accepted_or_described(path: tuple[str, str], value: object) -> None:
    raw = json.loads(load_config("smoke").canonical())
    raw[path[0]][path[1]] = value
    try:
        config = validated(raw)
    except BadInput as error:
        said = error.message
    else:
        said = ""
        assert RunConfig.model_validate_json(config.canonical()) == config
    assert "\n" not in said
