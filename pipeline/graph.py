"""The graph: which step follows which, for every runner.

    preflight -> ingest -> train -> evaluate -> gate -(pass)-> register          finalize (exit handler, always runs)

Promises: the same function runs as subprocesses, in containers and on Kubernetes. Its parameters are what a person enters in the form of
KFP: overrides, the acceptance of the licence and, if there are several, a preset. Preflight resolves them once, and each step gets the
sections that it needs as canonical JSON texts. Images, resources, secrets and retries are in `steps.py` and `compile.py`.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

from kfp import dsl
from kfp.dsl import PipelineTask

from components.evaluate.component import evaluate as evaluate_step
from components.finalize.component import finalize as finalize_step
from components.gate.component import gate as gate_step
from components.ingest.component import ingest as ingest_step
from components.register.component import register as register_step
from components.train.component import train as train_step
from pipeline.preflight_component import preflight as preflight_step
from pipeline.resolution import Sections, write_presets
from pipeline.steps import LastStep, Step, step_named

PIPELINE_NAME = "celebdit"
_DESCRIPTION = (
    "Trains a Diffusion Transformer face generator: checks everything, ingests images, trains, evaluates, compares with the champion and "
    "registers a model version in MLflow. Start it as it is, or change settings with `overrides`."
)
PARAMETERS = {
    "preset": "What to train. Each preset is a whole configuration; `celebdit config show NAME` prints it.",
    "overrides": (
        "Settings to change, separated by spaces, as on the command line: training.total_steps=20000 optimizer.lr_peak=1e-4. "
        "Empty: the preset as it is. docs/configuration.md lists all settings; a wrong one fails in preflight, within seconds."
    ),
    "licence_accepted_by": (
        "Your name, if you have read and accept the licence of the data; it is recorded with the dataset and every model. "
        "Empty: for data that needs no acceptance."
    ),
}
"""Parameter of the pipeline -> its description in KFP's form."""


class Outputs(NamedTuple):
    """Outputs of a pipeline run. They are finalize's, because KFP lets no other step of a pipeline with an exit handler give some."""

    score: str
    version: str


TaskConfigurator = Callable[[Step, PipelineTask], None]
"""Adds images, resources, secrets and retries to the task of a step."""


def build_graph(
    presets: Mapping[str, Sections],
    configure_task: TaskConfigurator = lambda step, task: None,
    pipeline_config: dsl.PipelineConfig | None = None,
    *,
    last_step: LastStep = "register",
) -> Callable[..., object]:
    """Return the pipeline that runs one of `presets` up to `last_step`.

    With several presets, its form has a parameter `preset`, a list of their names.
    """
    configurations, names = write_presets(presets), tuple(presets)
    connect = partial(_connect, configure_task, last_step)
    pipeline = dsl.pipeline(name=PIPELINE_NAME, description=_DESCRIPTION, pipeline_config=pipeline_config)

    def celebdit(overrides: str = "", licence_accepted_by: str = "") -> Outputs:
        return connect(presets=configurations, preset=names[0], overrides=overrides, licence_accepted_by=licence_accepted_by)

    def celebdit_of_presets(preset: str = names[0], overrides: str = "", licence_accepted_by: str = "") -> Outputs:
        return connect(presets=configurations, preset=preset, overrides=overrides, licence_accepted_by=licence_accepted_by)

    graph: Any = pipeline(celebdit if len(names) == 1 else celebdit_of_presets)
    _describe(graph, names)
    return graph


def _describe(graph: Any, names: tuple[str, ...]) -> None:
    """Describe the parameters for KFP's form, and offer the presets as a list: KFP 2.17 shows one, and its SDK cannot write it yet."""
    parameters = graph.component_spec.implementation.graph.root.input_definitions.parameters
    for name, parameter in parameters.items():
        parameter.description = PARAMETERS[name]
    if "preset" in parameters:
        for name in names:
            parameters["preset"].literals.add(string_value=name)


def _connect(configure_task: TaskConfigurator, last_step: LastStep, **entries: Any) -> Outputs:
    def configure(name: str, task: PipelineTask) -> None:
        configure_task(step_named(name), task)

    finalize_task = finalize_step()
    configure("finalize", finalize_task)
    outputs = Outputs(score=finalize_task.outputs["score"], version=finalize_task.outputs["version"])
    with dsl.ExitHandler(finalize_task, name="steps"):
        preflight_task = preflight_step(**entries)
        configure("preflight", preflight_task)
        sections = preflight_task.outputs
        ingest_task = ingest_step(data=sections["data"])
        configure("ingest", ingest_task)
        train_task = train_step(
            dataset=ingest_task.outputs["dataset"],
            dataset_digest=ingest_task.outputs["Output"],
            network=sections["network"],
            diffusion=sections["diffusion"],
            optimizer=sections["optimizer"],
            training=sections["training"],
            sampling=sections["sampling"],
            resources=sections["resources"],
            features=sections["features"],
            distill=sections["distill"],
        )
        configure("train", train_task)
        evaluate_task = evaluate_step(
            checkpoint=train_task.outputs["checkpoint"],
            dataset=ingest_task.outputs["dataset"],
            checkpoint_digest=train_task.outputs["Output"],
            evaluation=sections["evaluation"],
            sampling=sections["sampling"],
            resources=sections["resources"],
            registry=sections["registry"],
        )
        configure("evaluate", evaluate_task)
        if last_step == "evaluate":
            return outputs
        gate_task = gate_step(report=evaluate_task.outputs["report"], gate=sections["gate"], registry=sections["registry"])
        configure("gate", gate_task)
        with dsl.If(gate_task.outputs["Output"] == "pass", name="passed"):
            register_task = register_step(
                checkpoint=train_task.outputs["checkpoint"],
                dataset=ingest_task.outputs["dataset"],
                report=evaluate_task.outputs["report"],
                decision=gate_task.outputs["decision"],
                sampling=sections["sampling"],
                registry=sections["registry"],
            )
            configure("register", register_task)
    return outputs
