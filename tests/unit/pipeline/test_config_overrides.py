"""Overrides of a configuration: their types, and the lines that describe wrong ones."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from components.errors import BadInput
from pipeline.cli import main
from pipeline.config import RunConfig, load_config, load_data
from pipeline.images import ImagesLock


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


@pytest.mark.parametrize(
    "name", ["training.seed", "training.total_steps", "network.width", "data.name", "data.licence", "network.channels"]
)
@pytest.mark.parametrize("value", ["", " "])
def test_an_override_without_a_value_is_refused_where_the_setting_cannot_be_unset(name: str, value: str) -> None:
    """`training.seed=$SEED` without the variable would train with the default."""
    message = rf"{name} has no value and cannot be unset; is a variable of the shell not set\?"
    with pytest.raises(BadInput, match=message):
        load_config("smoke", [f"{name}={value}"])
    if name.startswith("data."):
        with pytest.raises(BadInput, match=message):
            load_data([f"{name}={value}"])


def test_an_unknown_setting_without_a_value_is_an_unknown_key() -> None:
    with pytest.raises(BadInput, match=r"unknown key training\.sead") as unknown:
        load_config("smoke", ["training.sead="])
    assert unknown.value.hint == "did you mean training.seed?"
    with pytest.raises(BadInput, match="unknown key trainin"):
        load_config("smoke", ["trainin.seed="])


def test_an_override_without_a_value_removes_a_bound() -> None:
    bound = 'gate.at_most."eval/fd_randconv_16"='
    assert load_config("smoke", [f"{bound}3.5", bound]).gate.at_most == load_config("smoke", [bound]).gate.at_most


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


@pytest.mark.parametrize(
    ("override", "lines"),
    [
        ('training.score_metrics=["fid"]', [r"training\.score_metrics\.0: Input should be 'mind' or 'frechet' \(given: 'fid'\)"]),
        ('training.score_metrics=["fid","kid"]', [r"training\.score_metrics\.0: .*", r"training\.score_metrics\.1: .*"]),
        ('evaluation.metrics=["mindd"]', [r"evaluation\.metrics\.0: Input should be .* \(given: 'mindd'\)"]),
        ("evaluation.metrics=[7]", [r"evaluation\.metrics\.0: Input should be .* \(given: 7\)"]),
        ("training.score_metrics=[]", [r"training\.score_metrics: Tuple should have at least 1 item .* \(given: \[\]\)"]),
        ("evaluation.metrics=[]", [r"evaluation\.metrics: Tuple should have at least 1 item .* \(given: \[\]\)"]),
    ],
)
def test_a_list_with_invalid_items_is_not_also_called_too_short(override: str, lines: list[str]) -> None:
    with pytest.raises(BadInput) as raised:
        load_config("smoke", [override])
    assert re.fullmatch("\n".join(lines), raised.value.message)


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
        "distill.teacher",
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


def test_an_empty_teacher_is_refused_unless_it_removes_one_of_a_file(tmp_path: Path) -> None:
    sampling = ["sampling.sampler=ddpm", "sampling.num_steps=4"]
    for others in ([], ["distill.steps=4"], sampling):
        with pytest.raises(BadInput, match=r"^distill\.teacher is empty; is a variable of the shell not set\?$"):
            load_config("smoke", ["distill.teacher=", *others])
    student = tmp_path / "student.toml"
    student.write_text(load_config("smoke", [f"distill.teacher={'0' * 16}", *sampling]).toml())
    assert load_config(str(student)).distill.teacher == "0" * 16
    assert load_config(str(student), ["distill.teacher="]).distill.teacher is None
    with pytest.raises(BadInput, match="is empty"):
        load_config(str(student), ["distill.teacher=", "distill.steps=4"])
