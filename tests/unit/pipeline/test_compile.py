"""The compiled pipeline: golden files, and the rules that our own linter keeps.

`make golden` writes the golden files again; read the difference before committing.
"""

import os
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import yaml
from celebdit_testing.kfp_api import check_package

from components.deployment import HUB_KEYS, KAGGLE_KEYS, SECRET_KEYS
from components.errors import BadInput
from components.settings import Settings
from pipeline.compile import CompileOptions, compile_pipeline, label_value
from pipeline.config import load_config
from pipeline.images import Build, Images, ImagesLock, read_lock
from pipeline.lint import lint
from pipeline.resolution import resolve
from pipeline.steps import step_names

GOLDEN = Path(__file__).parent / "golden"
IMAGES = Images(cpu="registry.example/celebdit-cpu@sha256:" + "a" * 64, gpu="registry.example/celebdit-gpu@sha256:" + "b" * 64)
CLUSTER = [
    "resources.device=cuda",
    "resources.processes=8",
    "resources.shm=32Gi",
    "resources.memory=256Gi",
    'resources.node_selector={pool="h200"}',
    'resources.tolerations=[{key="team", operator="Equal", value="faces", effect="NoSchedule"}]',
]
CASES: dict[str, tuple[list[str], tuple[str, ...]]] = {
    "cpu": ([], ()),
    "gpu": (CLUSTER, ("ingest", "evaluate")),
    "nodes": ([*CLUSTER, "resources.nodes=2", "training.batch_images=32"], ()),
}


def compiled(folder: Path, case: str) -> str:
    overrides, cached = CASES[case]
    target = folder / f"{case}.yaml"
    compile_pipeline(load_config("smoke", overrides), target, CompileOptions(images=IMAGES, preset="smoke", cached=cached))
    return target.read_text()


def digest_of_what_a_cluster_sees(text: str) -> dict[str, Any]:
    """Leave out the components' Python, which changes with every docstring, and the defaults, which the configuration's tests hold."""
    spec, platform = yaml.load_all(text, yaml.CSafeLoader)
    executors = {}
    for name, executor in spec["deploymentSpec"]["executors"].items():
        container = {key: value for key, value in executor["container"].items() if key not in ("args", "command")}
        executors[name] = {**container, "platform": platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"][name]}
    tasks = {}
    for component in [spec["root"], *spec["components"].values()]:
        for name, task in component.get("dag", {}).get("tasks", {}).items():
            tasks[name] = {key: task[key] for key in ("cachingOptions", "dependentTasks", "retryPolicy", "triggerPolicy") if key in task}
    form = {"pipelineInfo": spec["pipelineInfo"], **spec["root"]["inputDefinitions"]}
    return {"executors": executors, "tasks": tasks, "form": form, "outputs": spec["root"]["dag"]["outputs"]}


@pytest.mark.parametrize("case", CASES)
def test_the_compiled_pipeline_is_the_golden_one_and_kfp_parses_it(case: str, tmp_path: Path) -> None:
    text = compiled(tmp_path, case)
    check_package(text)
    pipeline_digest = digest_of_what_a_cluster_sees(text)
    golden = GOLDEN / f"{case}.yaml"
    if os.environ.get("CELEBDIT_WRITE_GOLDEN"):
        golden.parent.mkdir(exist_ok=True)
        golden.write_text(yaml.safe_dump(pipeline_digest, sort_keys=True))
    assert pipeline_digest == yaml.load(golden.read_text(), yaml.CSafeLoader)


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> str:
    return compiled(tmp_path_factory.mktemp("compiled"), "gpu")


def container(spec: dict[str, Any], step: str) -> dict[str, Any]:
    container_spec: dict[str, Any] = spec["deploymentSpec"]["executors"][f"exec-{step}"]["container"]
    return container_spec


def settings(platform: dict[str, Any], step: str) -> dict[str, Any]:
    platform_spec: dict[str, Any] = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"][f"exec-{step}"]
    return platform_spec


def task(spec: dict[str, Any], step: str) -> dict[str, Any]:
    task_spec: dict[str, Any] = next(
        component["dag"]["tasks"][step] for component in spec["components"].values() if step in component.get("dag", {}).get("tasks", {})
    )
    return task_spec


def damaged(text: str, damage: Callable[[Any, Any], object]) -> str:
    spec, platform = yaml.load_all(text, yaml.CSafeLoader)
    damage(spec, platform)
    return yaml.dump_all([spec, platform], Dumper=yaml.CSafeDumper)


def test_what_is_compiled_breaks_no_rule(text: str) -> None:
    assert lint(text, environ={}) == []


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda spec, platform: container(spec, "train").update(image="registry.example/gpu:v1"), "train: image registry.example/gpu:v1"),
        (lambda spec, platform: settings(platform, "train").update(emptyDirMounts=[]), "train: has no /dev/shm"),
        (lambda spec, platform: settings(platform, "evaluate")["emptyDirMounts"].pop(), "evaluate: has no /dev/shm"),
        (
            lambda spec, platform: settings(platform, "gate")["secretAsEnv"][0].update(optional=False),
            "gate: secret celebdit-s3 is not optional",
        ),
        (
            lambda spec, platform: settings(platform, "train")["secretAsVolume"][0].pop("optional"),
            "train: secret celebdit-certificates is not optional",
        ),
        (lambda spec, platform: settings(platform, "gate").pop("securityContext"), "gate: may run as root"),
        (lambda spec, platform: settings(platform, "gate").pop("activeDeadlineSeconds"), "gate: has no timeout"),
        (lambda spec, platform: task(spec, "ingest").pop("retryPolicy"), "ingest: is not retried"),
        (lambda spec, platform: task(spec, "train")["retryPolicy"].update(backoffMaxDuration="3600s"), "train: retries end 3600 s"),
        (
            lambda spec, platform: container(spec, "train")["env"].append({"name": "MLFLOW_TRACKING_PASSWORD", "value": "x"}),
            "train: MLFLOW_TRACKING_PASSWORD is a plain value",
        ),
        (
            lambda spec, platform: container(spec, "ingest")["env"].append({"name": "KAGGLE_KEY", "value": "x"}),
            "ingest: KAGGLE_KEY is a plain value",
        ),
        (
            lambda spec, platform: container(spec, "train")["env"].append({"name": "A", "value": "http://me:pass@host"}),
            "an address with credentials",
        ),
        (lambda spec, platform: container(spec, "train")["env"].append({"name": "A", "value": "canary-0123456789"}), "value of a secret"),
        (
            lambda spec, platform: spec["root"]["inputDefinitions"]["parameters"].update({f"p{n}": {} for n in range(15)}),
            "parameters are too many",
        ),
    ],
)
def test_every_rule_of_the_linter_finds_its_offence(text: str, damage: Callable[[Any, Any], object], message: str) -> None:
    findings = lint(damaged(text, damage), environ={"AWS_SECRET_ACCESS_KEY": "canary-0123456789"})
    assert len(findings) == 1, findings
    assert message in findings[0]


def test_a_pipeline_that_breaks_a_rule_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "registry.example/celebdit-cpu")  # a secret that is found in the pipeline
    with pytest.raises(BadInput, match="value of a secret"):
        compiled(tmp_path, "cpu")
    assert list(tmp_path.iterdir()) == []


def test_every_secret_is_a_reference(text: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    common = {key for keys in SECRET_KEYS.values() for key in keys}
    for key in (*common, *KAGGLE_KEYS, *HUB_KEYS):
        monkeypatch.setenv(key, f"canary-value-of-{key}")
    assert "canary-value-of" not in compiled(tmp_path, "gpu")
    _, platform = yaml.load_all(text, yaml.CSafeLoader)
    for step in step_names():
        variables = {entry["envVar"] for secret in settings(platform, step)["secretAsEnv"] for entry in secret["keyToEnv"]}
        assert variables == (common | {*KAGGLE_KEYS, *HUB_KEYS} if step == "ingest" else common), step
        assert all(secret["optional"] for secret in settings(platform, step)["secretAsEnv"])


def test_a_step_on_a_cluster_knows_the_address_of_its_run() -> None:
    addresses = {"CELEBDIT_STORE": "s3://bucket/x", "MLFLOW_TRACKING_URI": "http://mlflow", "CELEBDIT_RUN_ID": "r-1"}
    assert Settings.from_environment({**addresses, "CELEBDIT_KFP_UI": "https://kfp/"}).run_url == "https://kfp/#/runs/details/r-1"
    assert Settings.from_environment(addresses).run_url is None


def test_labels_are_accepted_by_kubernetes() -> None:
    assert label_value("my run (2).v1") == "my-run--2-.v1"
    assert label_value("-._") == "none"
    assert len(label_value("x" * 100)) == 63


def test_images_are_known_by_digest_only(tmp_path: Path) -> None:
    path = tmp_path / "images.lock.json"
    path.write_text(ImagesLock(images=IMAGES, git_commit="c", pins_sha256={}).model_dump_json())
    assert read_lock(path).images == IMAGES
    for bad in ('{"images": {"cpu": "a:v1", "gpu": "b:v1"}, "git_commit": "c", "pins_sha256": {}}', "{}", "no json"):
        path.write_text(bad)
        with pytest.raises(BadInput, match=r"images\.lock\.json"):
            read_lock(path)


@pytest.mark.parametrize("engine", ["docker", "podman", "buildah"])
def test_the_same_build_works_with_each_engine(engine: str) -> None:
    build = Build("cpu", "localhost/x:dev", "registry.example/python@sha256:1", {"GIT_COMMIT": "c"}, ["--network=host"])
    assert build.command(engine) == [
        engine,
        "build",
        *([] if engine == "docker" else ["--layers"]),
        "--network=host",
        "--build-arg",
        "BASE_IMAGE=registry.example/python@sha256:1",
        "--build-arg",
        "GIT_COMMIT=c",
        "--target",
        "cpu",
        "--tag",
        "localhost/x:dev",
        "--file",
        "docker/Dockerfile",
        ".",
    ]


def test_the_run_page_has_pages_metrics_and_a_summary(text: str) -> None:
    spec, _ = yaml.load_all(text, yaml.CSafeLoader)
    shown = {
        (step, name): artifact["artifactType"]["schemaTitle"]
        for step in step_names()
        for name, artifact in spec["components"][f"comp-{step}"].get("outputDefinitions", {}).get("artifacts", {}).items()
        if artifact["artifactType"]["schemaTitle"] in ("system.HTML", "system.Metrics", "system.Markdown")
    }
    assert shown == {
        ("ingest", "page"): "system.HTML",
        ("train", "metrics"): "system.Metrics",
        ("train", "samples"): "system.HTML",
        ("evaluate", "metrics"): "system.Metrics",
        ("evaluate", "samples"): "system.HTML",
        ("gate", "page"): "system.HTML",
        ("register", "summary"): "system.Markdown",
    }


def test_a_run_as_a_whole_has_a_deadline_and_a_time_to_live_where_they_are_set(tmp_path: Path, text: str) -> None:
    target = tmp_path / "pipeline.yaml"
    config = load_config("smoke", ["resources.run_timeout_h=48", "resources.keep_run_h=24"])
    compile_pipeline(config, target, CompileOptions(images=IMAGES, preset="smoke"))
    check_package(target.read_text())
    assert lint(target.read_text(), environ={}) == []
    _, platform = yaml.load_all(target.read_text(), yaml.CSafeLoader)
    expected = {"activeDeadlineSeconds": 48 * 3600, "resourceTtlOnCompletion": 24 * 3600}
    assert platform["platforms"]["kubernetes"]["pipelineConfig"] == expected
    assert "pipelineConfig" not in text


def test_a_queue_and_the_labels_of_a_site_are_on_every_pod(tmp_path: Path) -> None:
    overrides = [
        "resources.queue=team-faces",
        "resources.priority_class=low",
        'resources.labels={"example.com/cost-centre"="4711"}',
        'resources.annotations={"example.com/contact"="faces@example.com"}',
    ]
    nodes = ["resources.nodes=2", "training.batch_images=32", *overrides]
    target = tmp_path / "pipeline.yaml"
    compile_pipeline(load_config("smoke", nodes), target, CompileOptions(images=IMAGES, preset="smoke"))
    check_package(target.read_text())
    assert lint(target.read_text(), environ={}) == []
    _, platform = yaml.load_all(target.read_text(), yaml.CSafeLoader)
    for step in step_names():
        metadata = settings(platform, step)["podMetadata"]
        expected = {
            "kueue.x-k8s.io/queue-name": "team-faces",
            "kueue.x-k8s.io/priority-class": "low",
            "example.com/cost-centre": "4711",
            "celebdit.io/step": step,
        }
        assert expected.items() <= metadata["labels"].items(), step
        assert metadata["annotations"] == {"example.com/contact": "faces@example.com"}, step
    # The step that waits for the queued TrainJob has no time-out of its own in effect; that of the TrainJob does not run meanwhile.
    assert int(settings(platform, "train")["activeDeadlineSeconds"]) == 8760 * 3600
    assert int(settings(platform, "evaluate")["activeDeadlineSeconds"]) == 168 * 3600


def test_presets_state_what_their_pods_request(tmp_path: Path) -> None:
    compile_pipeline(load_config("smoke"), tmp_path / "p.yaml", CompileOptions(images=IMAGES, preset="smoke"))
    spec, _ = yaml.load_all((tmp_path / "p.yaml").read_text(), yaml.CSafeLoader)
    for step in step_names():
        resources = container(spec, step)["resources"]
        requests = (resources["resourceCpuRequest"], resources["resourceMemoryRequest"], resources["resourceMemoryLimit"])
        assert requests == ("500m", "2Gi", "2Gi"), step


def test_the_form_says_what_each_parameter_is(text: str) -> None:
    spec, _ = yaml.load_all(text, yaml.CSafeLoader)
    parameters = spec["root"]["inputDefinitions"]["parameters"]
    assert set(parameters) == {"overrides", "licence_accepted_by"}
    for name, parameter in parameters.items():
        assert len(parameter["description"]) > 40, name
        assert parameter["isOptional"], name
    assert "training.total_steps=20000 optimizer.lr_peak=1e-4" in parameters["overrides"]["description"]
    assert len(spec["pipelineInfo"]["description"]) > 40


def test_cache_keys_stay_narrow(text: str) -> None:
    """A step's cache key is made of its inputs, so each step gets its own sections and not what was entered in the form."""
    spec, _ = yaml.load_all(text, yaml.CSafeLoader)
    expected = {
        "ingest": {"data"},
        "train": {"network", "diffusion", "optimizer", "training", "distill", "sampling", "resources", "features"},
        "evaluate": {"evaluation", "sampling", "resources", "registry"},
        "gate": {"gate", "registry"},
        "register": {"sampling", "registry"},
    }
    for step, sections in expected.items():
        inputs = task(spec, step)["inputs"]["parameters"]
        assert sections <= set(inputs), step
        for name in sections:
            entry = inputs[name]
            channel = f"pipelinechannel--preflight-{name}"
            produced = {"producerTask": "preflight", "outputParameterKey": name}
            assert entry.get("taskOutputParameter") == produced or entry == {"componentInputParameter": channel}, step
        assert set(inputs) - sections <= {"dataset_digest", "checkpoint_digest"}, step


def test_one_file_serves_several_presets_with_a_list_to_choose_from(tmp_path: Path) -> None:
    target = tmp_path / "pipeline.yaml"
    others = {name: load_config(name) for name in ("celebahq256-b", "celebahq256-l")}
    compile_pipeline(load_config("celebahq256-s"), target, CompileOptions(images=IMAGES, preset="celebahq256-s", others=others))
    check_package(target.read_text())
    spec, _ = yaml.load_all(target.read_text(), yaml.CSafeLoader)
    preset = spec["root"]["inputDefinitions"]["parameters"]["preset"]
    assert preset["literals"] == ["celebahq256-s", "celebahq256-b", "celebahq256-l"]
    assert preset["defaultValue"] == "celebahq256-s"
    presets = task(spec, "preflight")["inputs"]["parameters"]["presets"]["runtimeValue"]["constant"]
    assert resolve(presets, preset="celebahq256-b", overrides="", licence_accepted_by="me").network == others["celebahq256-b"].network
    for step in step_names():  # no step takes one preset for another
        assert not [entry for entry in container(spec, step)["env"] if entry["name"] == "CELEBDIT_PRESET"], step


def test_presets_that_need_other_pods_are_not_compiled_to_one_file(tmp_path: Path) -> None:
    options = CompileOptions(images=IMAGES, preset="smoke", others={"celebahq256-s": load_config("celebahq256-s")})
    with pytest.raises(BadInput, match=r"different pods: .*resources\.device"):
        compile_pipeline(load_config("smoke"), tmp_path / "pipeline.yaml", options)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("level", [None, "DEBUG", "ERROR"])
def test_the_log_level_reaches_every_step_only_if_it_is_set(level: str | None, tmp_path: Path) -> None:
    target = tmp_path / "pipeline.yaml"
    compile_pipeline(load_config("smoke"), target, CompileOptions(images=IMAGES, preset="smoke", log_level=level))
    spec, _ = yaml.load_all(target.read_text(), yaml.CSafeLoader)
    for step in step_names():
        env = {entry["name"]: entry["value"] for entry in container(spec, step)["env"]}
        assert env.get("CELEBDIT_LOG_LEVEL") == level, step


@pytest.mark.parametrize(
    ("teacher", "average", "cached", "is_refused"),
    [
        ("a" * 16, None, ("train",), True),
        ("a" * 16, "0.1", ("train",), True),
        ("a" * 16 + "@900", None, ("train",), True),
        ("a" * 16 + "@900", "0.1", ("train",), False),
        ("a" * 16, None, ("ingest", "evaluate"), False),
    ],
)
@pytest.mark.parametrize("is_other", [False, True])
def test_the_training_of_a_student_is_cached_only_if_step_and_average_of_its_teacher_are_named(
    teacher: str, average: str | None, cached: tuple[str, ...], is_refused: bool, is_other: bool, tmp_path: Path
) -> None:
    """The teacher's run key stays the same when it is trained further, maybe with another average to sample with.

    KFP's cache key is the text of the settings.
    """
    named = [] if average is None else [f'distill.teacher_ema="{average}"']
    student = load_config("smoke", [f"distill.teacher={teacher}", *named, "sampling.sampler=ddpm", "sampling.num_steps=4"])
    config, others = (load_config("smoke"), {"student": student}) if is_other else (student, {})
    options = CompileOptions(images=IMAGES, preset="smoke", cached=cached, others=others)
    with pytest.raises(BadInput, match=r"needs the step of distill\.teacher") if is_refused else nullcontext():
        compile_pipeline(config, tmp_path / "pipeline.yaml", options)
