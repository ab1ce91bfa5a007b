"""Whether the cluster has nodes that training fits on."""

from collections.abc import Iterable, Mapping
from typing import Any

from components.resources import ResourcesConfig, Toleration
from pipeline.doctor.checks import Check


def check_gpus(nodes: Iterable[dict[str, Any]], resources: ResourcesConfig) -> Check:
    """Check that as many nodes as training takes have the GPUs, labels and taints that it asks for."""
    if not resources.on_gpus:
        return Check("gpus", "ok", "none are asked for (resources.device is cpu)")
    kind, wanted = resources.gpu_type, resources.processes
    having = [node for node in nodes if int(node.get("status", {}).get("allocatable", {}).get(kind, 0)) >= wanted]
    if not having:
        fix = "install the device plugin, lower resources.processes, or set resources.gpu_type"
        return Check("gpus", "fail", f"no node has {wanted} {kind}", fix)
    selected = [node for node in having if resources.node_selector.items() <= node["metadata"].get("labels", {}).items()]
    if not selected:
        return Check(
            "gpus", "fail", f"none of {len(having)} GPU nodes has the labels {resources.node_selector}", "set resources.node_selector"
        )
    taints = [taint for node in selected for taint in _repelling(node, resources.all_tolerations)]
    free = [node for node in selected if not _repelling(node, resources.all_tolerations)]
    if len(free) < resources.nodes:
        if taints:
            fix = f'set resources.tolerations=[{{key="{taints[0]["key"]}"}}]'
            return Check("gpus", "fail", f"{len(selected) - len(free)} GPU node(s) have the taint {taints[0]['key']}", fix)
        return Check(
            "gpus", "fail", f"{len(free)} node(s) have {wanted} {kind}, resources.nodes is {resources.nodes}", "set resources.nodes"
        )
    return Check("gpus", "ok", f"{len(free)} node(s) with {wanted} {kind} or more")


def _repelling(node: Mapping[str, Any], tolerations: Iterable[Toleration]) -> list[dict[str, Any]]:
    """Return the taints that keep our pods off a node."""
    found = node.get("spec", {}).get("taints", [])
    return [
        taint
        for taint in found
        if taint["effect"] != "PreferNoSchedule" and not any(_tolerated(taint, toleration) for toleration in tolerations)
    ]


def _tolerated(taint: Mapping[str, Any], toleration: Toleration) -> bool:
    effect = toleration.effect is None or toleration.effect == taint["effect"]
    value = toleration.operator == "Exists" or toleration.value == taint.get("value")
    return toleration.key == taint["key"] and effect and value
