"""The REST API of Kubeflow Pipelines as its own client knows it: routes, parameters and models, read from kfp-server-api.

A request that names an unknown parameter or field, or gives one the wrong type, is refused with 400 as the real server does; an uploaded
pipeline must parse as KFP's own protobuf messages.
"""

import email
import email.policy
import inspect
import re
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from urllib.parse import unquote

import kfp_server_api as api
import yaml
from celebdit_testing.http_server import Refused
from google.protobuf import json_format
from kfp.kubernetes import kubernetes_executor_config_pb2
from kfp.pipeline_spec import pipeline_spec_pb2

APIS = (
    api.PipelineServiceApi,
    api.PipelineUploadServiceApi,
    api.ExperimentServiceApi,
    api.RunServiceApi,
    api.RecurringRunServiceApi,
    api.HealthzServiceApi,
)


@dataclass(frozen=True)
class Route:
    name: str
    method: str
    pattern: re.Pattern[str]
    parameters: frozenset[str]
    body: str | None


def read_routes() -> list[Route]:
    """Read every operation of the API from the source of its client."""
    routes = []
    for kind in APIS:
        for name, function in inspect.getmembers(kind, inspect.isfunction):
            if not name.endswith("_with_http_info"):
                continue
            source = inspect.getsource(function)
            path, method = re.search(r"call_api\(\s*'([^']+)', '(\w+)'", source).groups()
            names = re.findall(r"'(\w+)'", re.search(r"all_params = \[(.*?)\]", source, re.DOTALL).group(1))
            body = re.search(r":type (\w+): (V2beta1\w+)", source) if method in ("POST", "PATCH") else None
            pattern = re.compile(re.sub(r"\{([\w.]+)\}", lambda match: f"(?P<{match.group(1).replace('.', '_')}>[^/:]+)", path))
            routes.append(Route(name.removesuffix("_with_http_info"), method, pattern, frozenset(names), body.group(2) if body else None))
    return sorted(routes, key=lambda route: -len(route.pattern.pattern))


ROUTES = read_routes()


def route_of(method: str, path: str) -> tuple[Route, dict[str, str]]:
    """Return the operation at `path` and what the path says."""
    for route in ROUTES:
        match = route.pattern.fullmatch(path)
        if match and route.method == method:
            return route, {key: unquote(value) for key, value in match.groupdict().items()}
    raise Refused(404, f"{method} {path} is not part of the API")


def validated(value: Any, kind: str, where: str) -> Any:  # noqa: PLR0911 - one answer per kind of type
    """Check JSON against a type of the API strictly and return the model's instance."""
    if kind.startswith("list["):
        if not isinstance(value, list):
            raise Refused(400, f"{where} must be a list")
        return [validated(item, kind[5:-1], f"{where}[{index}]") for index, item in enumerate(value)]
    if kind.startswith("dict("):
        if not isinstance(value, dict):
            raise Refused(400, f"{where} must be an object")
        return value
    if kind in ("str", "bool", "int", "float"):
        if type(value).__name__ != kind:
            raise Refused(400, f"{where} must be {kind}, not {value!r}")
        return value
    if kind == "datetime":
        return datetime.fromisoformat(value)
    if kind == "object":
        return value
    model = getattr(api.models, kind)
    if hasattr(model, "allowable_values"):
        if value not in model.allowable_values:
            raise Refused(400, f"{where}: {value!r} is none of {model.allowable_values}")
        return value
    if not isinstance(value, dict):
        raise Refused(400, f"{where} must be an object")
    names = {json_name: name for name, json_name in model.attribute_map.items()}
    if unknown := set(value) - set(names):
        raise Refused(400, f"unknown field {where}.{sorted(unknown)[0]}")
    return model(**{names[key]: validated(item, model.openapi_types[names[key]], f"{where}.{key}") for key, item in value.items()})


def uploaded_file(content_type: str, raw: bytes) -> bytes:
    """Return the one file of a multipart request."""
    form = email.message_from_bytes(b"Content-Type: " + content_type.encode() + b"\r\n\r\n" + raw, policy=email.policy.default)
    parts = {part.get_param("name", header="content-disposition"): part.get_payload(decode=True) for part in form.iter_parts()}
    if set(parts) != {"uploadfile"}:
        raise Refused(400, f"an upload has one part, uploadfile, and not {sorted(parts)}")
    return bytes(parts["uploadfile"])


def check_package(text: str) -> None:
    """Parse a pipeline as the server does."""
    documents = list(yaml.safe_load_all(text))
    json_format.ParseDict(documents[0], pipeline_spec_pb2.PipelineSpec())
    for document in documents[1:]:
        for executor in document["platforms"]["kubernetes"]["deploymentSpec"]["executors"].values():
            json_format.ParseDict(executor, kubernetes_executor_config_pb2.KubernetesExecutorConfig())
