"""Check a compiled pipeline for mistakes that KFP accepts and that fail later on the cluster.

Promises: every finding names the step and the consequence. Pure: text in, findings out. Does not validate the schema; KFP does.
"""

import json
import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import yaml

from components.deployment import SHM_PATH
from components.errors import BadInput
from components.reports.plural import plural
from components.runtime.redact import is_secret, redactor
from pipeline.steps import STEPS

_MAX_PARAMETERS = 15
_DEFAULT_WINDOW_S = 3600
_SECRET_TEXT = re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----|://[^/\s:@]+:[^/\s@]+@|\bAKIA[0-9A-Z]{16}\b")


def require_clean(text: str, *, environ: Mapping[str, str] | None = None) -> None:
    """Raise an error if a compiled pipeline breaks a rule.

    Raises:
        BadInput: with all findings.
    """
    if findings := lint(text, environ=environ):
        raise BadInput(f"the compiled pipeline breaks {plural(len(findings), 'rule')}: {'; '.join(findings)}")


def lint(text: str, *, environ: Mapping[str, str] | None) -> list[str]:
    """Return one line per broken rule; the values of secrets in `environ` must not occur in `text`."""
    documents = list(yaml.load_all(text, yaml.CSafeLoader))
    spec = documents[0]
    platform = documents[1] if len(documents) > 1 else {}
    findings = list(_secrets(text, spec, environ))
    parameters = spec["root"].get("inputDefinitions", {}).get("parameters", {})
    if len(parameters) > _MAX_PARAMETERS:
        findings.append(f"{len(parameters)} parameters are too many for the KFP UI (at most {_MAX_PARAMETERS})")
    torch_steps = [step.name for step in STEPS if step.on_nodes(_nodes(spec)).heavy]
    executors = spec["deploymentSpec"]["executors"]
    settings = platform.get("platforms", {}).get("kubernetes", {}).get("deploymentSpec", {}).get("executors", {})
    for name, executor in executors.items():
        findings += _executor(name.removeprefix("exec-"), executor["container"], settings.get(name, {}), torch_steps)
    for name, task in _tasks(spec):
        findings += _task(name, task)
    return findings


def _nodes(spec: Mapping[str, Any]) -> int:
    """Return on how many nodes the pipeline trains; all of its presets agree whether these are several."""
    task = next(task for name, task in _tasks(spec) if name == "preflight")
    presets = json.loads(task["inputs"]["parameters"]["presets"]["runtimeValue"]["constant"])
    return max(int(sections["resources"]["nodes"]) for sections in presets.values())


def _secrets(text: str, spec: Mapping[str, Any], environ: Mapping[str, str] | None) -> Iterator[str]:
    if _SECRET_TEXT.search(text):
        yield "it contains a key or an address with credentials"
    elif redactor(environ)(text) != text:
        yield "it contains the value of a secret from this environment"
    for name, executor in spec["deploymentSpec"]["executors"].items():
        for variable in executor["container"].get("env", []):
            if is_secret(variable["name"]):
                yield f"{name.removeprefix('exec-')}: {variable['name']} is a plain value: use a Secret"


def _executor(step: str, container: Mapping[str, Any], settings: Mapping[str, Any], torch_steps: Collection[str]) -> Iterator[str]:
    if not re.search(r"@sha256:[0-9a-f]{64}$", container["image"]):
        yield f"{step}: image {container['image']} is not pinned by digest"
    for reference in (*settings.get("secretAsEnv", []), *settings.get("secretAsVolume", [])):
        if not reference.get("optional"):
            yield f"{step}: secret {_name_of(reference)} is not optional: the pod hangs if it is missing"
    if not settings.get("securityContext", {}).get("runAsNonRoot"):
        yield f"{step}: may run as root"
    if not settings.get("activeDeadlineSeconds"):
        yield f"{step}: has no timeout"
    shm = [mount for mount in settings.get("emptyDirMounts", []) if mount["mountPath"] == SHM_PATH and mount.get("medium") == "Memory"]
    if step in torch_steps and not shm:
        yield f"{step}: has no {SHM_PATH} volume: the default of 64 MB causes bus errors"


def _task(name: str, task: Mapping[str, Any]) -> Iterator[str]:
    policy = task.get("retryPolicy")
    if policy is None:
        if name != "finalize" and "condition" not in name and "exit-handler" not in name and name != "steps":
            yield f"{name}: is not retried"
    elif int(policy.get("backoffMaxDuration", "0s").removesuffix("s")) <= _DEFAULT_WINDOW_S:
        yield f"{name}: retries end {_DEFAULT_WINDOW_S} s after the first attempt: set backoff_max_duration"


def _tasks(spec: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield every task of every graph."""
    for component in [spec["root"], *spec["components"].values()]:
        yield from component.get("dag", {}).get("tasks", {}).items()


def _name_of(reference: Mapping[str, Any]) -> str:
    name = reference.get("secretName") or reference.get("secretNameParameter", {}).get("runtimeValue", {}).get("constant")
    return str(name)
