"""The steps of the pipeline and what each of them needs: one entry per step.

`graph.py` connects the steps, `compile.py` turns these entries into settings of Kubernetes tasks. The `--cache` option, the local runner
in containers, the linter and `celebdit runs` read the same table.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from components import deployment

_LIGHT_TIMEOUT_H = 12
LastStep = Literal["evaluate", "register"]
"""The last step of a pipeline before the exit handler. A sweep's trials end with evaluate: they are not judged and not registered."""


@dataclass(frozen=True)
class Step:
    """One step of the graph; the defaults suit a step that only reads and writes small objects."""

    name: str
    image: Literal["cpu", "gpu"] = "cpu"
    heavy: bool = False
    """Runs torch: gets the CPU, memory, /dev/shm and accelerators of the `resources` section."""
    starts_trainjob: bool = False
    """On several nodes its own pod only starts a TrainJob and waits for it."""
    cacheable: bool = False
    """Its result is a function of its inputs; the other steps read state that changes."""
    retries: int = 3
    """Attempts after the first one; 0 for the exit handler, which KFP cannot retry."""
    timeout_h: int | None = _LIGHT_TIMEOUT_H
    """Hours until the step is stopped; None is `resources.timeout_h`."""
    secret_keys: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Secret -> keys that this step gets in addition to `deployment.SECRET_KEYS`."""

    def on_nodes(self, num_nodes: int) -> "Step":
        """Return the step as it runs on so many nodes: the pod that waits for a TrainJob is light."""
        return replace(self, image="cpu", heavy=False) if self.starts_trainjob and num_nodes > 1 else self


STEPS = (
    Step("preflight"),
    Step("ingest", cacheable=True, secret_keys={deployment.KAGGLE_SECRET: deployment.KAGGLE_KEYS}),
    Step("train", image="gpu", heavy=True, starts_trainjob=True, cacheable=True, retries=10, timeout_h=None),
    Step("evaluate", image="gpu", heavy=True, cacheable=True, timeout_h=None),
    Step("gate"),
    Step("register"),
    Step("finalize", retries=0),
)
"""All steps, in the order in which they run; `finalize` is the exit handler and always runs."""
_BY_NAME = {step.name: step for step in STEPS}


def step_names() -> list[str]:
    """Return the names of all steps, in order."""
    return list(_BY_NAME)


def step_named(name: str) -> Step:
    """Return the step called `name`."""
    return _BY_NAME[name]
