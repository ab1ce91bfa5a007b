"""The table of steps: every step of the graph has an entry, and the entries decide what the compiled pipeline gives to each."""

from pathlib import Path

import pytest
import yaml

from components.ingest.sources.open_source import KINDS
from pipeline.compile import CompileOptions, compile_pipeline
from pipeline.config import load_config
from pipeline.images import Images
from pipeline.steps import STEPS, step_named, step_names

IMAGES = Images(cpu="registry.example/cpu@sha256:" + "a" * 64, gpu="registry.example/gpu@sha256:" + "b" * 64)


def test_the_graph_has_the_steps_of_the_table_and_no_others(tmp_path: Path) -> None:
    target = tmp_path / "pipeline.yaml"
    compile_pipeline(load_config("smoke"), target, CompileOptions(images=IMAGES, preset="smoke"))
    spec = next(yaml.load_all(target.read_text(), yaml.CSafeLoader))
    executors = spec["deploymentSpec"]["executors"]
    assert sorted(executors) == sorted(f"exec-{name}" for name in step_names())
    for step in STEPS:
        image = IMAGES.gpu if step.image == "gpu" else IMAGES.cpu
        assert executors[f"exec-{step.name}"]["container"]["image"] == image


def test_the_ingest_step_gets_the_secrets_of_all_sources() -> None:
    secrets = {kind.secret: kind.credentials for kind in KINDS if kind.secret is not None}
    assert step_named("ingest").secret_keys == secrets


@pytest.mark.parametrize(("name", "nodes", "heavy"), [("train", 1, True), ("train", 2, False), ("evaluate", 2, True), ("gate", 1, False)])
def test_a_step_that_only_waits_for_its_trainjob_is_light(name: str, nodes: int, heavy: bool) -> None:
    step = step_named(name).on_nodes(nodes)
    assert step.heavy is heavy
    assert step.image == ("gpu" if heavy else "cpu")
