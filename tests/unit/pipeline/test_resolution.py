"""What a person enters in the form of a compiled pipeline: presets, overrides, the licence, and what needs other pods."""

import json
import shlex
from pathlib import Path

import pytest

from components.errors import BadInput
from pipeline.config import load_config
from pipeline.config_files import preset_names
from pipeline.preflight_component import preflight
from pipeline.resolution import graph_differences, resolve, write_presets

ACCEPTED = "A. Person"


def offered(*names: str) -> str:
    return write_presets({name: load_config(name).sections() for name in names})


@pytest.mark.parametrize("preset", preset_names())
def test_the_form_gives_what_the_command_line_gives(preset: str) -> None:
    presets = offered(preset)
    for overrides in (
        [],
        ["training.seed=24", "optimizer.lr_peak=3e-3"],
        [
            "optimizer.schedule=cosine",
            "optimizer.decay_steps=11",
            "optimizer.warmup_steps=2",
        ],  # a variant whose settings the preset may not have
        ["evaluation.extractor=random-conv"],  # drops the weights of the preset
        ["training.checkpoint_keep_every_steps=", "resources.threads=3"],
    ):
        expected = load_config(preset, overrides, changes={"data.licence_accepted_by": ACCEPTED})
        resolved = resolve(presets, preset=preset, overrides="  \n".join(overrides), licence_accepted_by=f" {ACCEPTED} ")
        assert resolved.canonical() == expected.canonical(), overrides


def test_a_compiled_pipeline_distils_a_teacher_that_is_named_in_the_form() -> None:
    overrides = ["distill.teacher=53e830b04a95c9d2@900", "distill.steps=8", "sampling.sampler=ddpm", "sampling.num_steps=8"]
    resolved = resolve(offered("demo"), preset="demo", overrides=" ".join(overrides), licence_accepted_by="")
    assert resolved.canonical() == load_config("demo", overrides).canonical()
    assert json.loads(resolved.sections()["distill"]) == {"steps": 8, "teacher": "53e830b04a95c9d2@900", "teacher_ema": None}


def test_overrides_are_quoted_as_in_a_shell() -> None:
    text = """'gate.at_most={"eval/fd_randconv_16"=40.0}' "training.seed=3"\n data.name='smoke faces'"""
    with pytest.raises(BadInput, match=r"data\.name.*smoke faces"):
        resolve(offered("smoke"), preset="smoke", overrides=text, licence_accepted_by="")
    config = resolve(offered("smoke"), preset="smoke", overrides=text.replace("smoke faces", "smoke-2"), licence_accepted_by="")
    assert (config.gate.at_most, config.training.seed, config.data.name) == ({"eval/fd_randconv_16": 40.0}, 3, "smoke-2")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ("training.total_stepz=1", r"training\.total_stepz"),
        ("training.total_steps=many", r"training\.total_steps"),
        ("total_steps=1", "not an override"),
        ("training.total_steps=1 and more", "not an override"),
        ("training.seed='1", "cannot be read"),
        ("training.total_steps=0 optimizer.lr_peak=-1", r"(?s)optimizer\.lr_peak.*training\.total_steps|training\.total_steps.*lr_peak"),
        ("data.image_px=64", "must be the same"),
        ("data.source=/not/there.zip", "does not exist where the steps run"),
    ],
)
def test_a_wrong_word_is_refused_before_anything_starts(overrides: str, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        resolve(offered("smoke"), preset="smoke", overrides=overrides, licence_accepted_by="")


def test_a_preset_that_the_pipeline_does_not_offer_is_refused_with_those_that_it_does() -> None:
    with pytest.raises(BadInput, match="'demo'") as caught:
        resolve(offered("smoke", "seed"), preset="demo", overrides="", licence_accepted_by="")
    assert "smoke, seed" in str(caught.value.hint)


def test_the_licence_is_accepted_in_the_form_or_the_run_fails_at_once() -> None:
    with pytest.raises(BadInput, match="must be accepted"):
        resolve(offered("celebahq256-s"), preset="celebahq256-s", overrides="", licence_accepted_by=" ")
    config = resolve(offered("celebahq256-s"), preset="celebahq256-s", overrides="", licence_accepted_by=ACCEPTED)
    assert config.data.licence_accepted_by == ACCEPTED


@pytest.mark.parametrize(
    ("overrides", "setting"),
    [
        ("resources.device=cuda", "resources.device"),
        ("resources.nodes=2", "resources.nodes"),
        ("resources.cpu=8000m", "resources.cpu"),
        ("resources.memory=64Gi", "resources.memory"),
        ("resources.shm=1Gi", "resources.shm"),
        ("resources.scratch=1Gi", "resources.scratch"),
        ("resources.timeout_h=1", "resources.timeout_h"),
        ("resources.node_selector.pool=big", "resources.node_selector"),
    ],
)
def test_an_override_that_needs_other_pods_is_refused_with_the_reason_and_the_command(overrides: str, setting: str) -> None:
    with pytest.raises(BadInput, match="needs another pipeline") as caught:
        resolve(offered("smoke"), preset="smoke", overrides=overrides, licence_accepted_by="")
    assert setting in caught.value.message
    assert f"celebdit compile smoke {overrides} --output" in str(caught.value.hint)


def test_the_command_that_compiles_another_pipeline_is_one_line_and_names_a_file_by_its_ending() -> None:
    presets = json.dumps({"mine": json.loads(offered("smoke"))["smoke"]})
    with pytest.raises(BadInput) as caught:
        resolve(presets, preset="mine", overrides="resources.cpu=8000m\n'data.licence=CC BY'", licence_accepted_by="")
    _, _, command = str(caught.value.hint).partition("celebdit ")
    assert shlex.split(command) == ["compile", "mine.toml", "resources.cpu=8000m", "data.licence=CC BY", "--output", "pipeline.yaml"]
    assert "\n" not in command


def test_only_what_pods_are_made_of_needs_another_pipeline() -> None:
    cpu, gpu = load_config("smoke").resources, load_config("smoke", ["resources.device=cuda"]).resources
    free = {"threads": 8, "rank_timeout_s": 5.0, "node_timeout_s": 5.0, "price_per_device_hour": 1.0}
    for resources in (cpu, gpu):
        assert graph_differences(resources, resources.model_copy(update=free)) == []
    more = {"processes": 4}
    assert graph_differences(cpu, cpu.model_copy(update=more)) == []  # ranks on CPUs
    assert len(graph_differences(gpu, gpu.model_copy(update=more))) == 1  # GPUs are requested by the pods
    assert graph_differences(gpu, gpu.model_copy(update={"device": "auto"})) == []
    nodes = {"nodes": 2}
    assert graph_differences(gpu.model_copy(update=nodes), gpu.model_copy(update={"nodes": 3})) == []  # the TrainJob is made at run time


def test_preflight_ends_with_the_line_and_the_exit_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = {"CELEBDIT_STORE": "s3://bucket/x", "MLFLOW_TRACKING_URI": "http://127.0.0.1:9", "CELEBDIT_RUN_ID": "r-1"}
    for name, value in {**settings, "CELEBDIT_WORK_DIR": str(tmp_path)}.items():
        monkeypatch.setenv(name, value)
    overrides = "training.total_stepz=1 network.depth=none"
    with pytest.raises(SystemExit) as ended:
        preflight.python_func(presets=offered("smoke"), preset="smoke", overrides=overrides, licence_accepted_by="")
    assert ended.value.code == BadInput.exit_code
    printed = capsys.readouterr().err
    assert "training.total_stepz" in printed
    assert "network.depth" in printed
    assert "did you mean training.total_steps?" in printed
    assert "Traceback" not in printed
