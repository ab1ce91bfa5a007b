"""The network policy of one TrainJob: its pods reach each other, and no other pod reaches them.

A selector cannot say "pods of the same job", so each job gets a policy of its own; docker/kubernetes ships the one that closes the pods of
all steps. Promises: pure; the policy belongs to its TrainJob, whose deletion deletes it. It holds where the cluster's network plugin
enforces policies.
"""

from collections.abc import Mapping
from typing import Any

from components import deployment as names
from components.kube.objects import KubernetesObject

GROUP, VERSION, PLURAL = "networking.k8s.io", "v1", "networkpolicies"
JOBSET_LABEL = "jobset.sigs.k8s.io/jobset-name"
"""The label that JobSet gives the pods of a TrainJob; its value is the job's name."""


def network_policy(job: Mapping[str, Any]) -> KubernetesObject:
    """Return the policy of `job`, a TrainJob as the cluster stores it; its name is new for each job of that name."""
    metadata = job["metadata"]
    owner = {"apiVersion": job["apiVersion"], "kind": job["kind"], "name": metadata["name"], "uid": metadata["uid"]}
    pods = {"podSelector": {"matchLabels": {JOBSET_LABEL: metadata["name"]}}}
    return {
        "apiVersion": f"{GROUP}/{VERSION}",
        "kind": "NetworkPolicy",
        "metadata": {
            "name": f"{metadata['name']}-{metadata['uid'][:8]}",
            "labels": {**names.PART_OF, names.STEP_LABEL: "train"},
            "ownerReferences": [owner],
        },
        "spec": {**pods, "policyTypes": ["Ingress"], "ingress": [{"from": [pods]}]},
    }
