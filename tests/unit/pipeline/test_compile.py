"""The compiled pipeline: golden files, and the rules that our own linter keeps.

`make golden` writes the golden files again; read the difference before committing.
"""

import os
from collections.abc import Callable
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
    return {"executors": executors, "tasks": tasks}


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
            lambda spec, platform: spec["root"]["inputDefinitions"]["parameters"].update({f"p{n}": {} for n in range(9)}),
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


@pytest.mark.parametrize("level", [None, "DEBUG", "ERROR"])
def test_the_log_level_reaches_every_step_only_if_it_is_set(level: str | None, tmp_path: Path) -> None:
    target = tmp_path / "pipeline.yaml"
    compile_pipeline(load_config("smoke"), target, CompileOptions(images=IMAGES, preset="smoke", log_level=level))
    spec, _ = yaml.load_all(target.read_text(), yaml.CSafeLoader)
    for step in step_names():
        env = {entry["name"]: entry["value"] for entry in container(spec, step)["env"]}
        assert env.get("CELEBDIT_LOG_LEVEL") == level, step
