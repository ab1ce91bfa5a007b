"""Names of EMA weights, in settings, checkpoints and files."""

import subprocess
import sys

import pytest

from model.ema import CLASSIC_EMA, RAW_WEIGHTS, EmaName, check_sigma_rel


@pytest.mark.parametrize(
    ("name", "group", "sigma_rel"),
    [
        (EmaName.of_width(0.1), "ema-0.1", 0.1),
        (EmaName.of_width(0.1250), "ema-0.125", 0.125),
        (EmaName("0.05"), "ema-0.05", 0.05),
        (CLASSIC_EMA, "ema-classic", None),
        (RAW_WEIGHTS, "weights", None),
    ],
)
def test_the_three_spellings_of_a_name_lead_to_each_other(name: EmaName, group: str, sigma_rel: float | None) -> None:
    assert (name.group, name.file, name.sigma_rel) == (group, f"{group}.safetensors", sigma_rel)
    assert EmaName.from_group(group) == EmaName.from_file(f"{group}.safetensors") == EmaName(name.setting) == name


@pytest.mark.parametrize("file", ["optimizer.safetensors", "state.json", "MANIFEST.json", "ema-0.1", "weights"])
def test_other_files_of_a_checkpoint_have_no_name(file: str) -> None:
    assert EmaName.from_file(file) is None


def test_only_the_raw_weights_are_raw() -> None:
    assert [name.is_raw for name in (EmaName("none"), EmaName("0.1"), CLASSIC_EMA)] == [True, False, False]


@pytest.mark.parametrize("width", [0.0, -0.1, 0.2887, 1.0, float("nan")])
def test_a_width_without_a_profile_is_refused_with_the_bounds(width: float) -> None:
    with pytest.raises(ValueError, match=r"must lie between 0 and 0\.2887"):
        check_sigma_rel(width)


def test_names_need_neither_pytorch_nor_numpy() -> None:
    code = "import model.ema, sys; assert not {'torch', 'numpy'} & set(sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
