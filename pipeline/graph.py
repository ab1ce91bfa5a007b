"""The graph: which step follows which, once, for every place that it runs in.

    preflight -> ingest -> train -> evaluate -> gate -(pass)-> register          finalize (exit handler, always runs)

Promises: the same function runs as subprocesses, in containers and on Kubernetes. Its parameters are the sections of the configuration as
canonical JSON texts. Resources, secrets and retries of a cluster are added in `compile.py`.
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

PIPELINE_NAME = "celebdit"
HEAVY_STEPS = ("train", "evaluate")
Dress = Callable[[str, PipelineTask], None]
"""Adds what a place needs to a step's task: (step name, task)."""


def build_graph(defaults: dict[str, str], dress: Dress = lambda step, task: None) -> Callable[..., object]:
    """Return the pipeline with `defaults` (section name -> canonical JSON) as the defaults of its parameters."""

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
        finalized = finalize_step()
        dress("finalize", finalized)
        with dsl.ExitHandler(finalized, name="steps"):
            checked = preflight_step(evaluation=evaluation, resources=resources)
            dress("preflight", checked)
            ingested = ingest_step(data=data, ready=checked.outputs["Output"])
            dress("ingest", ingested)
            trained = train_step(
                dataset=ingested.outputs["dataset"],
                dataset_digest=ingested.outputs["Output"],
                network=network,
                diffusion=diffusion,
                optimizer=optimizer,
                training=training,
                sampling=sampling,
                resources=resources,
            )
            dress("train", trained)
            evaluated = evaluate_step(
                checkpoint=trained.outputs["checkpoint"],
                dataset=ingested.outputs["dataset"],
                checkpoint_digest=trained.outputs["Output"],
                evaluation=evaluation,
                sampling=sampling,
                resources=resources,
                registry=registry,
            )
            dress("evaluate", evaluated)
            decided = gate_step(report=evaluated.outputs["report"], gate=gate, registry=registry)
            dress("gate", decided)
            with dsl.If(decided.outputs["Output"] == "pass", name="passed"):
                registered = register_step(
                    checkpoint=trained.outputs["checkpoint"],
                    dataset=ingested.outputs["dataset"],
                    report=evaluated.outputs["report"],
                    decision=decided.outputs["decision"],
                    sampling=sampling,
                    registry=registry,
                )
                dress("register", registered)

    return celebdit
