"""Configurations: presets, files, overrides, and every way to get them wrong."""

import json
import re
import shutil
import time
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import tomli_w
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from components.errors import BadInput
from pipeline.cli import main
from pipeline.commands.config import show
from pipeline.config import RunConfig, load_config, validated
from pipeline.config_files import preset_names
from pipeline.images import ImagesLock
from pipeline.source_check import check_source


@pytest.mark.parametrize("preset", preset_names())
def test_every_preset_is_valid_and_survives_its_canonical_form(preset: str) -> None:
    config = load_config(preset)
    assert RunConfig.model_validate_json(config.canonical()) == config
    assert validated(json.loads(config.canonical())).digest() == config.digest()
    assert set(config.sections()) == set(RunConfig.model_fields)


@pytest.mark.parametrize("preset", preset_names())
def test_what_config_show_prints_is_a_file_of_the_same_configuration(preset: str, tmp_path: Path) -> None:
    result = CliRunner().invoke(show, [preset, 'data.licence_accepted_by=A "quoted" name', "resources.tolerations=[{key='gpu'}]"])
    assert result.exit_code == 0, result.output
    (tmp_path / "mine.toml").write_text(result.stdout)
    again = load_config(str(tmp_path / "mine.toml"))
    assert f"digest {again.digest()}" in result.stderr
    assert again.data.licence_accepted_by == 'A "quoted" name'


DIGESTS = {
    "celebahq256-b": "3e69bb0fe28de9583f5fdac4a01c7829a5a240f5ca668353209c3f0a27cca2ea",
    "celebahq256-l": "d46fcbc1adccfb47190722f66f0b4aff5746f986967eda5b06a5ca86aa09ba5a",
    "celebahq256-s": "f1ce7651e3a6893c16880eadf4b1f7cf32eb6169c990f09f7f029bf14a8c8156",
    "celebahq256-xl": "81dc08ef2d9ef356f1bd507f7986f155ba57bf9458ef70190621693009eae081",
    "demo": "cf5bd11eb5af26bf30c8f092d136cba01a0474f273f605bb8aa278d3937d801c",
    "seed": "be3f39926bc695a5327930b257ef8c044968d219dd1d5b671febb018c55abbf3",
    "smoke": "7161762008f882bb083aced10b92097c33438dab5b8173fe94fbdf2267b92002",
}


def test_the_presets_are_what_earlier_runs_were_made_with() -> None:
    assert {preset: load_config(preset).digest() for preset in preset_names()} == DIGESTS


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("resources.queue=Team_Queue", "resources.queue: must look like"),
        ("resources.priority_class=low", "priority_class 'low' counts only in a queue"),
        ('resources.labels={"celebdit.io/step"="x"}', "'celebdit.io/step' is not a key that you can set"),
        ('resources.labels={"kueue.x-k8s.io/queue-name"="x"}', "is not a key that you can set"),
        ('resources.labels={"team"="a b"}', "labels: team has the value 'a b'"),
        ('resources.annotations={"-bad"="x"}', "annotations: '-bad' is not a key"),
        ("resources.light_memory=2G", "resources.light_memory: must look like"),
        ("resources.light_cpu=0", "resources.light_cpu"),
    ],
)
def test_what_kubernetes_would_refuse_in_labels_and_queues_is_refused_first(override: str, message: str) -> None:
    with pytest.raises(BadInput, match=re.escape(message)):
        load_config("smoke", [override])


def test_overrides_are_typed_values_or_plain_texts() -> None:
    config = load_config(
        "smoke",
        [
            "training.total_steps=7",
            "optimizer.lr_peak=2e-3",
            "data.name=mine",
            "network.channels=[16, 32]",
            'gate.at_most."eval/fd_randconv_16"=3.5',
        ],
    )
    assert config.training.total_steps == 7
    assert config.optimizer.lr_peak == 2e-3
    assert config.data.name == "mine"
    assert config.network.channels == (16, 32)
    assert config.gate.at_most == {"eval/fd_randconv_16": 3.5}


def test_an_override_without_a_value_unsets_what_the_preset_sets() -> None:
    unset = ("evaluation.weights=", "evaluation.weights_sha256=")
    config = load_config("celebahq256-s", ["evaluation.extractor=random-conv", *unset])
    assert (config.evaluation.extractor, config.evaluation.weights, config.evaluation.weights_sha256) == ("random-conv", None, None)
    with pytest.raises(BadInput, match=r"data\.name"):
        load_config("smoke", ["data.name="])


@pytest.mark.parametrize(
    ("override", "message", "hint"),
    [
        ("training.total_stepz=3", "unknown key training.total_stepz", "did you mean training.total_steps?"),
        ("trainin.total_steps=3", "unknown key trainin", "did you mean training?"),
        ("training.total_steps='8'", "training.total_steps: .*valid integer.*'8'", ""),
        ("training.total_steps=8.0", "training.total_steps: .*valid integer", ""),
        ("training.total_steps=true", "training.total_steps: .*valid integer", ""),
        ("training.total_steps=0", "training.total_steps: .*greater than 0", ""),
        ("optimizer.lr_peak=nan", "optimizer.lr_peak: nan is not finite", "finite numbers"),
        ("optimizer.betas=[0.9, inf]", "optimizer.betas.1: inf is not finite", ""),
        ("optimizer.lr_peak=-1.0", "optimizer.lr_peak: .*greater than 0", ""),
        ("optimizer.lr_peak=2", "optimizer.lr_peak: .*less than or equal to 1", ""),
        ("training.batch_images=31", "31 cannot be shared by 2 processes: use 30 or 32", ""),
        ("network.patch_px=3", "image_px 32 must be a multiple", ""),
        ("network.heads=5", "width 32 must be a multiple of heads 5", ""),
        ("data.image_px=64", "data.image_px 64 and network.image_px 32", ""),
        ("sampling.ema=other", "sampling.ema 'other' is not tracked", ""),
        ("sampling.ema=0.3", """sampling.ema: a text is expected .given: 0.3.; quote it .*: sampling.ema='"0.3"'""", ""),
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
def test_a_wrong_override_is_described_in_one_line(override: str, message: str | None, hint: str) -> None:
    if message is None:
        load_config("smoke", [override])
        return
    with pytest.raises(BadInput, match=message) as raised:
        load_config("smoke", [override])
    assert "\n" not in raised.value.message
    assert hint in (raised.value.hint or "")


def test_all_problems_are_described_one_a_line() -> None:
    distance, copied = "eval/fd_randconv_16", "eval/memorised_share_16"
    measured = f"{distance}, {distance}_of_noise, {distance}_std, {copied}, {copied}_std, eval/nearest_median_16"
    with pytest.raises(BadInput) as raised:
        load_config(
            "smoke",
            [
                "training.total_steps=0",
                "training.sede=1",
                "optimizer.lr_peak=2",
                "network.width=30",
                "network.image_px=36",
                "resources.memory=16GB",
                "sampling.eta=0.5",
                "gate.at_most={'eval/fid_50k'=1.0}",
                "extra.key=1",
            ],
        )
    assert raised.value.message.split("\n") == [
        "network: width / heads = 15 must be a multiple of 4 (rotary positions in two axes)",
        "network: image_px 36 must be a multiple of 8 (latent stride 4 x patch_px 2)",
        "optimizer.lr_peak: Input should be less than or equal to 1 (given: 2)",
        "training.total_steps: Input should be greater than 0 (given: 0)",
        "unknown key training.sede",
        "resources.memory: must look like 16Gi (given: '16GB')",
        "unknown key extra",
        "gate.at_most: 'eval/fid_50k' will not be measured: the evaluation section gives " + measured,
        "sampling.eta 0.5 belongs to sampling.sampler 'ddim', and sampling.sampler is 'euler': leave it out",
    ]
    assert "did you mean training.seed?" in str(raised.value.hint)


def test_relations_are_checked_between_the_sections_that_are_valid() -> None:
    with pytest.raises(BadInput) as raised:
        load_config("smoke", ["data.name=X", "sampling.ema=other", "sampling.eta=0.5", "evaluation.champion=false"])
    named, ema, champion, eta = raised.value.message.split("\n")
    assert named.startswith("data.name: must look like celebahq256 (given: 'X')")
    assert ema.startswith("sampling.ema 'other' is not tracked")
    assert champion.startswith("gate.no_worse_than_champion compares with the champion")
    assert eta == "sampling.eta 0.5 belongs to sampling.sampler 'ddim', and sampling.sampler is 'euler': leave it out"


def test_the_command_line_prints_every_problem_on_its_own_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["config", "show", "smoke", "training.total_steps=0", "resources.memory=16GB"])
    assert capsys.readouterr().err.splitlines() == [
        "celebdit: training.total_steps: Input should be greater than 0 (given: 0)",
        "  resources.memory: must look like 16Gi (given: '16GB')",
    ]


def _text_fields(kind: type[BaseModel], path: str) -> Iterator[tuple[str, FieldInfo]]:
    for name, field in kind.model_fields.items():
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            yield from _text_fields(inner, f"{path}{name}.")
        elif "str" in str(inner):
            yield f"{path}{name}", field


def test_no_error_shows_a_regular_expression() -> None:
    fields = dict([*_text_fields(RunConfig, ""), *_text_fields(ImagesLock, "")])
    assert not [path for path, field in fields.items() if "pattern" in str(field.metadata)]
    assert sorted(path for path, field in fields.items() if "TextForm" in f"{field.metadata} {field.annotation}") == [
        "data.name",
        "evaluation.extractor",
        "evaluation.vgg_weights_sha256",
        "evaluation.weights_sha256",
        "images.cpu",
        "images.gpu",
        "registry.model_name",
        "resources.cpu",
        "resources.gpu_type",
        "resources.light_cpu",
        "resources.light_memory",
        "resources.memory",
        "resources.priority_class",
        "resources.queue",
        "resources.scratch",
        "resources.shm",
    ]


@pytest.mark.parametrize(
    ("override", "example"),
    [
        ("data.name=-", "celebahq256"),
        ("data.name=abc\n", "celebahq256"),
        ("evaluation.extractor=a b", "random-conv or package.module:Class"),
        ("evaluation.weights_sha256=abc", "64 hexadecimal digits"),
        ("registry.model_name=a b", "celebdit-faces"),
        ("resources.cpu=0", "4 or 3500m"),
        ("resources.gpu_type=gpu", "nvidia.com/gpu"),
        ("resources.shm=8", "16Gi"),
    ],
)
def test_a_text_of_the_wrong_form_is_refused_with_an_example(override: str, example: str) -> None:
    name, _, value = override.partition("=")
    with pytest.raises(BadInput, match=f"{name}: must look like .*{example}"):
        load_config("smoke", changes={name: value})


@pytest.mark.parametrize("bound", ["at_most", "at_least"])
def test_a_bound_on_a_metric_that_will_not_be_measured_is_refused(bound: str) -> None:
    with pytest.raises(BadInput, match=rf"gate.{bound}: 'eval/fd_randconv_1k' will not be measured: .*eval/fd_randconv_500,"):
        load_config(
            "demo", ["evaluation.num_images=500", "gate.at_most={}", "gate.at_least={}", f"gate.{bound}={{'eval/fd_randconv_1k'=4.0}}"]
        )
    load_config(
        "demo", ["evaluation.num_images=500", "gate.at_most={}", "gate.at_least={}", f"gate.{bound}={{'eval/fd_randconv_500'=4.0}}"]
    )


@pytest.mark.parametrize(
    ("override", "problem"),
    [
        ("gate.at_most={'eval/memorised_share_16'=0.1}", "memorised_share_16' will not be measured"),
        ("gate.at_least={'eval/memorised_share_16'=0.1}", "memorised_share_16' will not be measured"),
        ("gate.at_most={'eval/fd_randconv_16'=3.0}", None),
        ("evaluation.num_images=2", None),
        ("evaluation.reference_split=held_out", "'held_out' has no images while data.held_out is 0"),
    ],
)
def test_what_cannot_be_evaluated_is_refused_before_anything_starts(override: str, problem: str | None) -> None:
    overrides = ["evaluation.memorisation=false", "gate.at_most={}", override]
    if problem is None:
        load_config("smoke", overrides)
        return
    with pytest.raises(BadInput, match=problem):
        load_config("smoke", overrides)


def test_fewer_images_than_a_metric_needs_are_refused() -> None:
    inception = [
        "evaluation.extractor=inception-v3-compat",
        "evaluation.weights=w.pth",
        f"evaluation.weights_sha256={'a' * 64}",
        "gate.at_most={}",
    ]
    with pytest.raises(BadInput, match=r"evaluation\.num_reference 3 is too few for evaluation\.metrics precision_recall: use at least 4"):
        load_config("smoke", [*inception, "evaluation.num_reference=3"])
    load_config("smoke", [*inception, "evaluation.num_reference=4"])


@pytest.mark.parametrize(("source", "count"), [("synthetic://?count=1", 1), ("folder", 1), ("folder", 0), ("zip", 1)])
def test_a_source_of_one_image_is_refused_before_anything_starts(source: str, count: int, tmp_path: Path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    for index in range(count):
        Image.new("RGB", (8, 8)).save(folder / f"{index}.png")
    if source == "zip":
        shutil.make_archive(str(tmp_path / "images"), "zip", folder)
    name = {"folder": str(folder), "zip": str(tmp_path / "images.zip")}.get(source, source)
    with pytest.raises(BadInput, match=r"contains no images" if count == 0 else r"has 1 file\(s\), .* needs at least 2 images"):
        check_source(load_config("smoke", [f"data.source={name}"]))


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


def test_a_setting_that_was_added_later_changes_digests_only_where_it_is_set() -> None:
    plain, changed = load_config("smoke"), load_config("smoke", ["resources.node_timeout_s=60.0"])
    assert "node_timeout_s" not in plain.sections()["resources"]
    assert json.loads(changed.sections()["resources"])["node_timeout_s"] == 60.0
    assert changed.digest() != plain.digest() == DIGESTS["smoke"]
    assert "node_timeout_s = 600.0" in plain.toml(), "shown with every default"
    assert RunConfig.model_validate_json(changed.canonical()) == changed
