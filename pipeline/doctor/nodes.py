"""Check that the cluster has nodes for training."""

from collections.abc import Iterable

from components.kube.objects import KubernetesObject
from components.reports.plural import plural
from components.resources import ResourcesConfig, Toleration
from pipeline.doctor.checks import Check


def check_gpus(nodes: Iterable[KubernetesObject], resources: ResourcesConfig) -> Check:
    """Check that enough nodes have the GPUs and labels that `resources` asks for, and no taint that it does not tolerate."""
    if not resources.on_gpus:
        return Check("gpus", "ok", "not needed: resources.device is cpu")
    gpu_type, gpus = resources.gpu_type, resources.processes
    gpu_nodes = [node for node in nodes if int(node.get("status", {}).get("allocatable", {}).get(gpu_type, 0)) >= gpus]
    if not gpu_nodes:
        fix = "install the device plugin, lower resources.processes, or set resources.gpu_type"
        return Check("gpus", "fail", f"no node has {gpus} {gpu_type}", fix)
    selected = [node for node in gpu_nodes if resources.node_selector.items() <= node["metadata"].get("labels", {}).items()]
    if not selected:
        return Check(
            "gpus", "fail", f"none of {len(gpu_nodes)} GPU nodes has the labels {resources.node_selector}", "set resources.node_selector"
        )
    taints = [taint for node in selected for taint in blocking_taints(node, resources.all_tolerations)]
    free = [node for node in selected if not blocking_taints(node, resources.all_tolerations)]
    if len(free) < resources.nodes:
        if taints:
            fix = f'set resources.tolerations=[{{key="{taints[0]["key"]}"}}]'
            return Check("gpus", "fail", f"{plural(len(selected) - len(free), 'GPU node')} with the taint {taints[0]['key']}", fix)
        return Check(
            "gpus",
            "fail",
            f"{plural(len(free), 'node')} with {gpus} {gpu_type}, resources.nodes is {resources.nodes}",
            "set resources.nodes",
        )
    return Check("gpus", "ok", f"{plural(len(free), 'node')} with {gpus} {gpu_type} or more")


def blocking_taints(node: KubernetesObject, tolerations: Iterable[Toleration]) -> list[KubernetesObject]:
    """Return the taints of a node that pods with `tolerations` cannot be scheduled on."""
    taints = node.get("spec", {}).get("taints", [])
    return [
        taint
        for taint in taints
        if taint["effect"] != "PreferNoSchedule" and not any(_is_tolerated(taint, toleration) for toleration in tolerations)
    ]


def _is_tolerated(taint: KubernetesObject, toleration: Toleration) -> bool:
    effect = toleration.effect is None or toleration.effect == taint["effect"]
    value = toleration.operator == "Exists" or toleration.value == taint.get("value")
    return toleration.key == taint["key"] and effect and value
