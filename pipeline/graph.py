"""The graph: which step follows which, for every runner.

    preflight -> ingest -> train -> evaluate -> gate -(pass)-> register          finalize (exit handler, always runs)

Promises: the same function runs as subprocesses, in containers and on Kubernetes. Its parameters are the sections of the configuration as
canonical JSON texts. Images, resources, secrets and retries are in `steps.py` and `compile.py`.
"""

from collections.abc import Callable

from kfp import dsl
from kfp.dsl import PipelineTask

from components.evaluate.component import evaluate as evaluate_step
from components.finalize.component import finalize as finalize_step
from components.gate.component import gate as gate_step
from components.ingest.component import ingest as ingest_step
from components.preflight.component import preflight as preflight_step
from components.register.component import register as register_step
from components.train.component import train as train_step
from pipeline.steps import LastStep, Step, step_named

PIPELINE_NAME = "celebdit"
TaskConfigurator = Callable[[Step, PipelineTask], None]
"""Adds images, resources, secrets and retries to the task of a step."""


def build_graph(
    defaults: dict[str, str], configure_task: TaskConfigurator = lambda step, task: None, *, last_step: LastStep = "register"
) -> Callable[..., object]:
    """Return the pipeline up to `last_step`, with `defaults` (section name -> canonical JSON) as the defaults of its parameters."""

    def configure(name: str, task: PipelineTask) -> None:
        configure_task(step_named(name), task)

    @dsl.pipeline(
        name=PIPELINE_NAME, description="Trains a Diffusion Transformer face generator, from raw images to a registered model version."
    )
    def celebdit(
        data: str = defaults["data"],
        network: str = defaults["network"],
        diffusion: str = defaults["diffusion"],
        optimizer: str = defaults["optimizer"],
        training: str = defaults["training"],
        sampling: str = defaults["sampling"],
        evaluation: str = defaults["evaluation"],
        gate: str = defaults["gate"],
        registry: str = defaults["registry"],
        resources: str = defaults["resources"],
    ) -> None:
        finalize_task = finalize_step()
        configure("finalize", finalize_task)
        with dsl.ExitHandler(finalize_task, name="steps"):
            preflight_task = preflight_step(evaluation=evaluation, resources=resources, registry=registry)
            configure("preflight", preflight_task)
            ingest_task = ingest_step(data=data, ready=preflight_task.outputs["Output"])
            configure("ingest", ingest_task)
            train_task = train_step(
                dataset=ingest_task.outputs["dataset"],
                dataset_digest=ingest_task.outputs["Output"],
                network=network,
                diffusion=diffusion,
                optimizer=optimizer,
                training=training,
                sampling=sampling,
                resources=resources,
            )
            configure("train", train_task)
            evaluate_task = evaluate_step(
                checkpoint=train_task.outputs["checkpoint"],
                dataset=ingest_task.outputs["dataset"],
                checkpoint_digest=train_task.outputs["Output"],
                evaluation=evaluation,
                sampling=sampling,
                resources=resources,
                registry=registry,
            )
            configure("evaluate", evaluate_task)
            if last_step == "evaluate":
                return
            gate_task = gate_step(report=evaluate_task.outputs["report"], gate=gate, registry=registry)
            configure("gate", gate_task)
            with dsl.If(gate_task.outputs["Output"] == "pass", name="passed"):
                register_task = register_step(
                    checkpoint=train_task.outputs["checkpoint"],
                    dataset=ingest_task.outputs["dataset"],
                    report=evaluate_task.outputs["report"],
                    decision=gate_task.outputs["decision"],
                    sampling=sampling,
                    registry=registry,
                )
                configure("register", register_task)

    return celebdit
