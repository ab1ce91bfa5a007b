"""Compare what the pods of a run request with what the nodes of the cluster can allocate.

Promises: pure; a step that no node can take is named with its request, the largest node and the setting to lower. Does not look at what
runs on the nodes now: that changes, and `celebdit submit --wait` reports the scheduler's reason.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from components.errors import shorten
from components.kube.objects import KubernetesObject
from components.resources import ResourcesConfig, Toleration
from pipeline.doctor.checks import Check
from pipeline.doctor.nodes import blocking_taints
from pipeline.steps import STEPS

_UNITS = {"": 1.0, "m": 1e-3, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15}
_UNITS |= {"Ki": 2.0**10, "Mi": 2.0**20, "Gi": 2.0**30, "Ti": 2.0**40, "Pi": 2.0**50}


def check_requests(nodes: Iterable[KubernetesObject], resources: ResourcesConfig) -> list[Check]:
    """Return one failed check per step that would stay Pending, or one that all steps fit."""
    pending = pending_steps(list(nodes), resources)
    if not pending:
        return [Check("requests", "ok", "each step fits on a node")]
    return [Check("requests", "fail", problem, fix) for problem, fix in pending]


def pending_steps(nodes: list[KubernetesObject], resources: ResourcesConfig) -> list[tuple[str, str]]:
    """Return what would stay Pending and what to lower, one entry for all steps with the same request."""
    heavy = [step.name for step in STEPS if step.heavy]
    light = [step.name for step in STEPS if not step.on_nodes(resources.nodes).heavy]
    heavy_nodes = [
        node
        for node in nodes
        if resources.node_selector.items() <= node["metadata"].get("labels", {}).items()
        and not blocking_taints(node, resources.all_tolerations)
    ]
    no_tolerations: tuple[Toleration, ...] = ()
    light_nodes = [node for node in nodes if not blocking_taints(node, no_tolerations)]
    problems = []
    for steps, candidates, cpu, memory, prefix in (
        (heavy, heavy_nodes, resources.cpu, resources.memory, ""),
        (light, light_nodes, resources.light_cpu, resources.light_memory, "light_"),
    ):
        if not any(_fits(node, cpu, memory) for node in candidates):
            names = ", ".join(steps)
            best = max(candidates, key=_allocatable, default=None)
            largest = "no node is open to them" if best is None else f"the largest node that they may use has {_text(best)}"
            problems.append(
                (
                    f"{names} would stay Pending: each requests {cpu} CPU and {memory}, {largest}",
                    f"lower resources.{prefix}cpu and resources.{prefix}memory, or add a node",
                )
            )
    return problems


def _fits(node: Mapping[str, Any], cpu: str, memory: str) -> bool:
    cpus, size_bytes = _allocatable(node)
    return cpus >= quantity(cpu) and size_bytes >= quantity(memory)


def _allocatable(node: Mapping[str, Any]) -> tuple[float, float]:
    """Return CPUs and bytes; a node that does not say what it has is not in the way."""
    allocatable = node.get("status", {}).get("allocatable", {})
    return tuple(quantity(allocatable[name]) if name in allocatable else float("inf") for name in ("cpu", "memory"))  # type: ignore[return-value]


def _text(node: Mapping[str, Any]) -> str:
    allocatable = node["status"]["allocatable"]
    size = f"{quantity(allocatable['memory']) / 2**30:.1f}Gi" if "memory" in allocatable else "unknown memory"
    return f"{allocatable.get('cpu', 'unknown')} CPU and {size} ({node['metadata'].get('name', '?')})"


def quantity(text: object) -> float:
    """Return a quantity of Kubernetes as a number: `500m` is 0.5, `2Gi` is 2147483648.

    Raises:
        ValueError: if it is none.
    """
    match = re.fullmatch(r"([0-9.]+(?:[eE][+-]?[0-9]+)?)([a-zA-Z]*)", str(text).strip())
    if match is None or match[2] not in _UNITS:
        raise ValueError(f"{shorten(repr(str(text)), max_characters=40)} is not a quantity of Kubernetes")
    return float(match[1]) * _UNITS[match[2]]
