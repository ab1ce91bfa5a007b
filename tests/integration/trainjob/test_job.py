"""A TrainJob of the train step: what it asks for, that there is one, and who may do what."""

import os
import signal
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from celebdit_testing.kube_server import FakeKube, kube_server
from celebdit_testing.recipes import dataset_manifest
from celebdit_testing.servers import ACCESS_KEY, SECRET_KEY
from celebdit_testing.steps import notes
from celebdit_testing.trainjobs import IMAGE, JOB, KEY, MANIFESTS, MLFLOW_PASSWORD, Start, Step, connect, in_pod, spec_of
from celebdit_testing.waiting import wait_until

from components import deployment as names
from components.errors import BadInput, Preempted, TemporaryFailure
from components.resources import ResourcesConfig, Toleration
from components.runtime.context import StepContext
from components.train.spec import TrainSpec
from components.train.trainjob.job import train_on_nodes
from components.train.trainjob.manifest import trainjob
from pipeline.config import load_config


def test_a_training_on_two_nodes_is_a_trainjob_that_is_waited_for(kube: FakeKube, start: Start) -> None:
    step = start()
    wait_until(lambda: ("trainjobs", JOB) in kube.objects)
    spec = kube.objects["trainjobs", JOB]["spec"]
    assert spec["runtimeRef"]["name"] == names.TRAINING_RUNTIME
    assert (spec["trainer"]["image"], spec["trainer"]["numNodes"], spec["trainer"]["numProcPerNode"]) == (IMAGE, 2, 8)
    assert spec["trainer"]["resourcesPerNode"]["limits"]["nvidia.com/gpu"] == "8"
    time.sleep(0.1)
    assert step.is_alive()
    kube.condition(JOB, "Complete")
    assert step.outcome() is None
    assert ("trainjobs", JOB) in kube.objects


def test_placement_and_space_reach_the_pods(context: StepContext) -> None:
    placement = {
        "node_selector": {"pool": "h200"},
        "tolerations": (Toleration(key="team", operator="Equal", value="faces"),),
        "shm": "32Gi",
    }
    job = trainjob(spec_of(**placement), "s3://b/spec.json", IMAGE, context.settings, owners=[])
    (replicated,) = job["spec"]["runtimePatches"][0]["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"]
    pod = replicated["template"]["spec"]["template"]["spec"]
    assert pod["nodeSelector"] == {"pool": "h200"}
    assert [toleration["key"] for toleration in pod["tolerations"]] == ["team", "nvidia.com/gpu"]
    assert {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": "32Gi"}} in pod["volumes"]


@pytest.mark.parametrize(("preset", "seconds"), [("smoke", (60, 62)), ("celebahq256-b", (110, 140)), ("celebahq256-xl", (380, 430))])
def test_the_time_to_stop_follows_the_size_of_the_checkpoint(context: StepContext, preset: str, seconds: tuple[int, int]) -> None:
    config = load_config(preset)
    spec = TrainSpec(run_key=KEY, attempt="a1", dataset=dataset_manifest(), resources=ResourcesConfig(nodes=2), **dict(config.recipe))
    job = trainjob(spec, "s3://b/spec.json", IMAGE, context.settings, owners=[])
    (replicated,) = job["spec"]["runtimePatches"][0]["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"]
    uri, ranks_s = job["spec"]["trainer"]["args"]
    assert uri == "s3://b/spec.json"
    assert seconds[0] <= int(ranks_s) <= seconds[1], "a minute, and the checkpoint at 50 MB/s"
    pod_s = replicated["template"]["spec"]["template"]["spec"]["terminationGracePeriodSeconds"]
    assert pod_s >= int(ranks_s) + 30, "the launcher writes why its ranks ended"


SITE: dict[str, Any] = {
    "queue": "team-faces",
    "priority_class": "low",
    "labels": {"example.com/cost-centre": "4711"},
    "annotations": {"example.com/contact": "faces@example.com"},
}
KUEUE = {"kueue.x-k8s.io/queue-name": "team-faces", "kueue.x-k8s.io/priority-class": "low"}


def test_the_queue_and_the_labels_of_a_site_are_on_the_trainjob_and_its_pods(context: StepContext) -> None:
    job = trainjob(spec_of(**SITE), "s3://b/spec.json", IMAGE, context.settings, owners=[])
    assert {**KUEUE, **SITE["labels"], **names.PART_OF}.items() <= job["metadata"]["labels"].items()
    assert SITE["annotations"].items() <= job["metadata"]["annotations"].items()
    (replicated,) = job["spec"]["runtimePatches"][0]["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"]
    metadata = replicated["template"]["spec"]["template"]["metadata"]
    assert SITE["labels"].items() <= metadata["labels"].items()
    assert metadata["annotations"] == SITE["annotations"]
    assert not KUEUE.items() & metadata["labels"].items()  # Kueue would queue each pod for itself, beside the job


def test_a_trainjob_that_kueue_suspends_is_queued_and_not_failed(kube: FakeKube, context: StepContext, start: Start) -> None:
    step = start(spec_of(**SITE))
    wait_until(lambda: ("trainjobs", JOB) in kube.objects)
    assert kube.objects["trainjobs", JOB]["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "team-faces"
    kube.condition(JOB, "Suspended", "TrainJob is suspended")
    wait_until(lambda: any(f"TrainJob {JOB} is queued in team-faces: TrainJob is suspended" in note for note in notes(context)))
    asked = kube.count("get trainjobs.trainer.kubeflow.org")
    time.sleep(0.2)
    assert step.is_alive(), "it waits without a deadline"
    assert sum("is queued" in note for note in notes(context)) == 1
    assert kube.count("get trainjobs.trainer.kubeflow.org") >= asked
    again = start(spec_of(attempt="a2", **SITE))  # a retried step takes the queued job as it is, and its place in the queue
    wait_until(lambda: any("is already running: waiting for it" in note for note in notes(context)))
    kube.condition(JOB, "Complete")
    assert (step.outcome(), again.outcome()) == (None, None)


@pytest.mark.parametrize("level", [None, "DEBUG"])
def test_the_log_level_of_the_step_reaches_the_pods(context: StepContext, level: str | None) -> None:
    job = trainjob(spec_of(), "s3://b/spec.json", IMAGE, replace(context.settings, log_level=level), owners=[])
    env = {entry["name"]: entry.get("value") for entry in job["spec"]["trainer"]["env"]}
    assert env.get("CELEBDIT_LOG_LEVEL") == level
    assert ("CELEBDIT_LOG_LEVEL" in env) == (level is not None)


def test_secrets_are_named_in_the_job_and_never_contained(kube: FakeKube, start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    secrets = {"AWS_ACCESS_KEY_ID": ACCESS_KEY, "AWS_SECRET_ACCESS_KEY": SECRET_KEY, "MLFLOW_TRACKING_PASSWORD": MLFLOW_PASSWORD}
    for name, value in secrets.items():
        monkeypatch.setenv(name, value)
    step = start()
    wait_until(lambda: ("trainjobs", JOB) in kube.objects)
    env = {entry["name"]: entry for entry in kube.objects["trainjobs", JOB]["spec"]["trainer"]["env"]}
    assert env["AWS_SECRET_ACCESS_KEY"]["valueFrom"]["secretKeyRef"] == {
        "name": names.S3_SECRET,
        "key": "AWS_SECRET_ACCESS_KEY",
        "optional": True,
    }
    kube.condition(JOB, "Complete")
    step.outcome()
    for canary in (ACCESS_KEY, SECRET_KEY, MLFLOW_PASSWORD):
        assert canary not in "".join(kube.bodies)


def test_the_job_belongs_to_the_runs_workflow(kube: FakeKube, start: Start) -> None:
    step = start()
    wait_until(lambda: ("trainjobs", JOB) in kube.objects)
    kube.condition(JOB, "Complete")
    step.outcome()
    (owner,) = kube.objects["trainjobs", JOB]["metadata"]["ownerReferences"]
    assert owner == {"apiVersion": "argoproj.io/v1alpha1", "kind": "Workflow", "name": "celebdit-x", "uid": "u-1"}


@pytest.mark.parametrize("fault", [None, "lost", 500, 503, 429])
def test_a_retried_step_adopts_its_job_and_a_lost_answer_makes_no_second_one(
    kube: FakeKube, start: Start, context: StepContext, fault: int | str | None
) -> None:
    if fault is not None:
        kube.faults.append(("create", "trainjobs", fault))
    first = start(spec_of("a1"))
    wait_until(lambda: ("trainjobs", JOB) in kube.objects)
    job_uid = kube.objects["trainjobs", JOB]["metadata"]["uid"]
    second = start(spec_of("a2"))  # as when the first step's pod was deleted
    wait_until(lambda: any("is already running: waiting for it" in note for note in notes(context)))
    kube.condition(JOB, "Complete")
    assert (first.outcome(), second.outcome()) == (None, None)
    assert kube.objects["trainjobs", JOB]["metadata"]["uid"] == job_uid


def test_a_job_that_failed_or_has_other_settings_is_replaced(kube: FakeKube, start: Start) -> None:
    step = start()
    wait_until(lambda: ("trainjobs", JOB) in kube.objects)
    kube.condition(JOB, "Failed", "DeadlineExceeded")
    assert isinstance(step.outcome(), TemporaryFailure)
    old = kube.objects["trainjobs", JOB]["metadata"]["uid"]
    for resources in ({}, {"nodes": 3}):
        step = start(spec_of(**resources))
        wait_until(lambda old=old: kube.objects.get(("trainjobs", JOB), {"metadata": {"uid": old}})["metadata"]["uid"] != old)
        old = kube.objects["trainjobs", JOB]["metadata"]["uid"]
        if resources:
            assert kube.objects["trainjobs", JOB]["spec"]["trainer"]["numNodes"] == 3
            kube.condition(JOB, "Complete")
            assert step.outcome() is None
        else:
            kube.condition(JOB, "Failed", "x")
            step.outcome()
    assert kube.count("delete trainjobs") == 2


def test_a_temporary_outage_of_the_api_server_is_waited_out(kube: FakeKube, start: Start) -> None:
    step = start()
    wait_until(lambda: ("trainjobs", JOB) in kube.objects)
    kube.faults += [("get", "trainjobs", 500), ("get", "trainjobs", "lost"), ("list", "pods", 503), ("get", "trainjobs", 429)]
    wait_until(lambda: not kube.faults)
    assert step.is_alive()
    kube.condition(JOB, "Complete")
    assert step.outcome() is None


def test_a_step_that_is_cancelled_deletes_its_job(kube: FakeKube, tmp_path: Path, context: StepContext) -> None:
    def cancel() -> None:
        wait_until(lambda: ("trainjobs", JOB) in kube.objects)
        os.kill(os.getpid(), signal.SIGTERM)

    canceller = threading.Thread(target=cancel)
    canceller.start()
    with pytest.raises(Preempted):
        train_on_nodes(spec_of(), in_pod(context), cluster=connect(tmp_path), poll_s=0.02)
    canceller.join()
    assert ("trainjobs", JOB) not in kube.objects


def test_a_cancelled_run_takes_its_trainjob_and_policy_with_its_workflow(kube: FakeKube, start: Start) -> None:
    """As when Kubeflow ends the step without any notice and its workflow is deleted."""
    kube.put("workflows", "celebdit-x", metadata={"uid": "u-1"})
    step = start()
    wait_until(lambda: policies(kube))
    assert ("trainjobs", JOB) in kube.objects
    kube.delete("workflows", "celebdit-x")
    assert ("trainjobs", JOB) not in kube.objects
    assert not policies(kube)
    assert isinstance(step.outcome(), TemporaryFailure), "a step that still waits does not wait for ever"


def test_a_run_in_the_namespace_of_a_user_has_its_trainjob_there(tmp_path: Path, context: StepContext) -> None:
    with kube_server(tmp_path, namespace="team") as team:
        team.load_rights(MANIFESTS / "pipeline" / "rbac.yaml")
        team.put("pods", "train-pod")
        step = Step(tmp_path, context, spec_of())
        step.start()
        wait_until(lambda: policies(team))
        team.condition(JOB, "Complete")
        assert step.outcome() is None
        team.rules.clear()
        refused = Step(tmp_path, context, spec_of())
        refused.start()
        assert "does not allow to get pods in namespace team" in str(refused.outcome())


def test_a_missing_right_is_named(kube: FakeKube, start: Start) -> None:
    error = start(account="nobody").outcome()
    assert isinstance(error, BadInput)
    assert "does not allow to get pods in namespace kubeflow" in error.message
    kube.rules["pipeline-runner"] = [rule for rule in kube.rules["pipeline-runner"] if "trainjobs" not in rule["resources"]]
    error = start().outcome()
    assert isinstance(error, BadInput)
    assert "trainjobs.trainer.kubeflow.org" in error.message


def test_the_manifests_grant_only_what_the_step_uses(kube: FakeKube, start: Start) -> None:
    """Remove each verb in turn: every one of them is needed."""
    granted = [(rule, verb) for rule in kube.rules["pipeline-runner"] for verb in rule["verbs"]]
    used = {"create trainjobs", "get trainjobs", "delete trainjobs", "create networkpolicies", "get pods", "list pods", "get pods/log"}
    spare = {f"{verb} {resource}" for rule, verb in granted for resource in rule["resources"]} - used
    kube.node_pod(JOB, 0)
    step = start()
    wait_until(lambda: ("trainjobs", JOB) in kube.objects)
    kube.condition(JOB, "Failed", "x")
    step.outcome()
    step = start()
    wait_until(lambda: kube.count("delete trainjobs") == 1)
    wait_until(lambda: ("trainjobs", JOB) in kube.objects)
    kube.condition(JOB, "Complete")
    step.outcome()
    assert used == set(kube.requests) - {"list nothing"}
    assert not spare


def test_several_nodes_without_a_cluster_are_bad_input(context: StepContext) -> None:
    with pytest.raises(BadInput, match=r"resources\.nodes is 2"):
        train_on_nodes(spec_of(), context)


def policies(kube: FakeKube) -> list[dict[str, Any]]:
    return [entry for (kind, _), entry in kube.objects.items() if kind == "networkpolicies"]


def reaches(policies: list[dict[str, Any]], source: dict[str, str], target: dict[str, str]) -> bool:
    """Return whether pods with the labels `source` may connect to those with the labels `target`, both in one namespace."""

    def selects(selector: dict[str, Any], labels: dict[str, str]) -> bool:
        assert selector.keys() <= {"matchLabels"}, "the only kind of selector that this understands"
        return selector.get("matchLabels", {}).items() <= labels.items()

    closing = [policy["spec"] for policy in policies if selects(policy["spec"]["podSelector"], target)]
    peers = [peer for spec in closing for rule in spec.get("ingress", []) for peer in rule["from"]]
    return not closing or any(selects(peer["podSelector"], source) for peer in peers)


def test_pods_of_other_trainings_and_steps_do_not_reach_those_of_a_trainjob(kube: FakeKube, start: Start) -> None:
    step = start()
    wait_until(lambda: policies(kube))
    (replicated,) = kube.objects["trainjobs", JOB]["spec"]["runtimePatches"][0]["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"]
    labels = replicated["template"]["spec"]["template"]["metadata"]["labels"]
    node = {**labels, "jobset.sigs.k8s.io/jobset-name": JOB}
    other = {**labels, "jobset.sigs.k8s.io/jobset-name": "celebdit-fedcba9876543210"}
    shipped = yaml.safe_load((MANIFESTS / "pipeline" / "network-policy.yaml").read_text())
    in_force = [shipped, *policies(kube)]
    assert reaches(in_force, node, node)
    assert not reaches([shipped], node, node), "closed without the job's own policy"
    for stranger in (other, labels, {}, {"app.kubernetes.io/part-of": "celebdit", "celebdit.io/step": "evaluate"}):
        assert not reaches(in_force, stranger, node), stranger
    kube.condition(JOB, "Failed", "x")
    step.outcome()
    old = policies(kube)
    step = start()
    wait_until(lambda: policies(kube) and policies(kube) != old)
    kube.condition(JOB, "Complete")
    assert step.outcome() is None
    (new,) = policies(kube)
    assert new["metadata"]["ownerReferences"][0]["uid"] == kube.objects["trainjobs", JOB]["metadata"]["uid"], "it goes with its job"


@pytest.mark.parametrize("fault", ["lost", 503])
def test_a_policy_whose_answer_was_lost_is_created_once(kube: FakeKube, start: Start, fault: int | str) -> None:
    kube.faults.append(("create", "networkpolicies", fault))
    step = start()
    wait_until(lambda: kube.count("create networkpolicies") == 2 and policies(kube))
    assert len(policies(kube)) == 1
    kube.condition(JOB, "Complete")
    assert step.outcome() is None


def test_a_job_whose_nodes_could_not_meet_is_not_left_behind(kube: FakeKube, start: Start) -> None:
    kube.rules["pipeline-runner"] = [rule for rule in kube.rules["pipeline-runner"] if "networkpolicies" not in rule["resources"]]
    error = start().outcome()
    assert isinstance(error, BadInput)
    assert "create networkpolicies.networking.k8s.io" in error.message
    assert kube.count("create trainjobs") == 1
    assert ("trainjobs", JOB) not in kube.objects
