"""Kubernetes API client for one namespace.

Promises: a missing object is None and not an exception; requests are retried while the API server is unavailable; a missing permission is
named as the verb and the resource that an administrator must allow.
"""

import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import urllib3
from kubernetes import client, config
from kubernetes.client.exceptions import ApiException
from kubernetes.config.kube_config import KUBE_CONFIG_DEFAULT_LOCATION, KubeConfigMerger
from yaml import YAMLError

from components.address import is_server_url
from components.errors import BadInput, TemporaryFailure, shorten, whole_text
from components.kube.objects import KubernetesObject
from components.system.connection_errors import is_header_refused, plain_reason, tls_fault
from components.system.proxies import proxy_for, read_proxy
from components.system.retry import RetryPolicy, retry

_IN_CLUSTER = "KUBERNETES_SERVICE_HOST"
_TOKEN_FOLDER = Path("/var/run/secrets/kubernetes.io/serviceaccount")
_TIMEOUT_S = (10.0, 60.0)
_STREAMED: dict[str, Any] = {"_preload_content": False, "_request_timeout": (10.0, 300.0)}
"""A log stream that is silent for so long is requested again: its node may have vanished."""
_KUBECONFIG_HINT = "try `kubectl get pods`: its KUBECONFIG and context are used"
_TEMPORARY = (408, 429, 500, 502, 503, 504)
T = TypeVar("T")
_log = logging.getLogger(__name__)


class Conflict(Exception):
    """An object of that name exists already."""


class Cluster:
    """One namespace of a Kubernetes cluster."""

    def __init__(
        self, api: client.ApiClient, namespace: str, *, deadline_s: float = 600.0, sleep: Callable[[float], None] = time.sleep
    ) -> None:
        self.namespace = namespace
        self._policy = RetryPolicy(deadline_s=deadline_s, first_pause_s=0.5)
        self._sleep = sleep
        self.api = api
        self._custom = client.CustomObjectsApi(api)
        self._authorization = client.AuthorizationV1Api(api)

    @classmethod
    def connect(
        cls, environ: Mapping[str, str] = os.environ, *, namespace: str | None = None, context: str | None = None, deadline_s: float = 600.0
    ) -> "Cluster":
        """Connect as the pod's service account inside a cluster, else as kubectl does.

        Raises:
            BadInput: if there is neither.
        """
        settings = client.Configuration()
        settings.retries = urllib3.Retry(0)
        try:
            if environ.get(_IN_CLUSTER) and (_TOKEN_FOLDER / "token").exists():
                config.load_incluster_config(client_configuration=settings)
                default_namespace = (_TOKEN_FOLDER / "namespace").read_text().strip()
            else:
                config.load_kube_config(config_file=environ.get("KUBECONFIG"), context=context, client_configuration=settings)
                contexts, active = config.list_kube_config_contexts(config_file=environ.get("KUBECONFIG"))
                chosen = next(each for each in (active, *contexts) if context in (None, each["name"]))["context"]
                default_namespace = chosen.get("namespace", "default")
                _reach_from_outside(settings, _proxy_url(environ.get("KUBECONFIG"), chosen["cluster"]))
        except (config.ConfigException, YAMLError, OSError, KeyError, ValueError, TypeError, AttributeError) as error:  # of any file
            raise BadInput(
                f"no Kubernetes cluster is configured here: {whole_text(error, max_characters=200)}",
                hint=_KUBECONFIG_HINT,
            ) from error
        return cls(client.ApiClient(settings), namespace or default_namespace, deadline_s=deadline_s)

    def read(self, resource: str, name: str) -> KubernetesObject | None:
        """Return a core object of this namespace, like ("secrets", name), or None."""
        return self._get(f"get {resource}", lambda: self._plain(f"/api/v1/namespaces/{self.namespace}/{resource}/{name}"))

    def read_namespace(self) -> KubernetesObject | None:
        """Return this namespace, or None."""
        return self._get("get namespaces", lambda: self._plain(f"/api/v1/namespaces/{self.namespace}"))

    def nodes(self) -> list[KubernetesObject]:
        """Return all nodes of the cluster."""
        return self._list("list nodes", lambda: self._plain("/api/v1/nodes"))

    def pods(self, selector: str) -> list[KubernetesObject]:
        """Return the pods of this namespace that `selector` matches."""
        path = f"/api/v1/namespaces/{self.namespace}/pods"
        return self._list("list pods", lambda: self._plain(path, [("labelSelector", selector)]))

    def log(self, pod: str, container: str, *, since: datetime | None = None) -> Iterator[str]:
        """Yield the lines of a container's log as they arrive, each with its timestamp and line feed, until the log ends.

        Kubernetes rounds `since` to seconds: lines of that second are repeated. The stream may also end because the API server restarts,
        and then within a line.

        Raises:
            TemporaryFailure: if there is no log, the connection broke, or it was silent for too long. BadInput: if we may not read it.
        """
        query = [("container", container), ("follow", "true"), ("timestamps", "true")]
        if since is not None:  # the generated function has only sinceSeconds, which depends on two clocks
            query.append(("sinceTime", f"{since.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}"))
        try:
            with closing(self._request(f"/api/v1/namespaces/{self.namespace}/pods/{pod}/log", query, **_STREAMED)) as answer:
                pending = b""
                for chunk in answer.stream(amt=None, decode_content=False):
                    *lines, pending = (pending + chunk).split(b"\n")
                    yield from (line.decode(errors="replace") + "\n" for line in lines)
                if pending:
                    yield pending.decode(errors="replace")
        except ApiException as error:
            if error.status in (401, 403):
                raise self._translate_error("get pods/log", error) from error
            raise TemporaryFailure(f"pod {pod} has no log (HTTP {error.status})", hint="run it again") from error
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise TemporaryFailure(f"the log stream of pod {pod} was interrupted", hint="run it again") from error

    def custom(self, group: str, version: str, plural: str, name: str, *, of_cluster: bool = False) -> KubernetesObject | None:
        """Return a custom object of this namespace, or with `of_cluster` one of the cluster, or None."""
        if of_cluster:
            return self._get(
                f"get {plural}.{group}", lambda: self._custom.get_cluster_custom_object(group, version, plural, name, **_time_limits())
            )
        return self._get(
            f"get {plural}.{group}",
            lambda: self._custom.get_namespaced_custom_object(group, version, self.namespace, plural, name, **_time_limits()),
        )

    def create_custom(self, group: str, version: str, plural: str, body: KubernetesObject) -> KubernetesObject:
        """Create a custom object.

        Raises:
            Conflict: if one of that name exists, be it from an earlier attempt of this call.
        """

        def create() -> Any:
            return self._custom.create_namespaced_custom_object(group, version, self.namespace, plural, body, **_time_limits())

        return dict(self._with_retries(f"create {plural}.{group}", create))

    def delete_custom(self, group: str, version: str, plural: str, name: str) -> None:
        """Delete a custom object and its dependents, and wait until they are gone; a missing one is no error."""

        def delete() -> Any:
            return self._custom.delete_namespaced_custom_object(
                group, version, self.namespace, plural, name, propagation_policy="Foreground", **_time_limits()
            )

        self._get(f"delete {plural}.{group}", delete)
        deadline_s = time.monotonic() + self._policy.deadline_s
        while self.custom(group, version, plural, name) is not None:
            if time.monotonic() > deadline_s:
                raise TemporaryFailure(
                    f"{plural} {name} still exists {self._policy.deadline_s:.0f} s after it was deleted",
                    hint=f"kubectl describe {plural} {name}",
                )
            self._sleep(1.0)

    def is_allowed(self, verb: str, resource: str, group: str = "", subresource: str = "", account: str | None = None) -> bool:
        """Return whether we, or a service account of this namespace, have this permission in the namespace."""
        attributes = client.V1ResourceAttributes(
            namespace=self.namespace, verb=verb, resource=resource, group=group, subresource=subresource or None
        )
        if account is None:
            body = client.V1SelfSubjectAccessReview(spec=client.V1SelfSubjectAccessReviewSpec(resource_attributes=attributes))
            review = self._authorization.create_self_subject_access_review
        else:
            user = f"system:serviceaccount:{self.namespace}:{account}"
            body = client.V1SubjectAccessReview(spec=client.V1SubjectAccessReviewSpec(user=user, resource_attributes=attributes))
            review = self._authorization.create_subject_access_review
        answer = self._with_retries("create subjectaccessreviews.authorization.k8s.io", lambda: review(body, **_time_limits()))
        return bool(answer.status.allowed)

    def server_version(self) -> str:
        """Return the version of the API server."""
        return str(self._with_retries("get /version", lambda: self._plain("/version"))["gitVersion"])

    def _get(self, right: str, call: Callable[[], Any]) -> KubernetesObject | None:
        try:
            return dict(self._with_retries(right, call))
        except _Missing:
            return None

    def _list(self, right: str, call: Callable[[], Any]) -> list[KubernetesObject]:
        return list(self._with_retries(right, call)["items"])

    def _plain(self, path: str, query: Sequence[tuple[str, str]] = ()) -> Any:
        """Return what is at `path` as plain JSON: the client's models refuse objects without fields that they require."""
        return self._request(path, query, response_type="object", **_time_limits())

    def _request(self, path: str, query: Sequence[tuple[str, str]], **options: Any) -> Any:
        return self.api.call_api(
            path,
            "GET",
            query_params=list(query),
            header_params={"Accept": "application/json, */*"},
            auth_settings=["BearerToken"],
            _return_http_data_only=True,
            **options,
        )

    def _with_retries(self, right: str, call: Callable[[], T]) -> T:
        def once() -> T:
            try:
                return call()
            except ApiException as error:
                raise self._translate_error(right, error) from error
            except urllib3.exceptions.HTTPError as error:
                if (fault := tls_fault(error)) is not None:
                    raise BadInput(f"the Kubernetes API cannot be used: {fault}", hint=_KUBECONFIG_HINT) from error
                reason = plain_reason(error)
                raise TemporaryFailure(f"the Kubernetes API cannot be reached to {right}: {reason}", hint="run it again") from error
            except ValueError as error:
                if not is_header_refused(error):
                    raise
                raise BadInput("no request to Kubernetes can be made: a header cannot hold its token", hint=_KUBECONFIG_HINT) from None

        return retry(
            once,
            what=f"Kubernetes API: {right}",
            log=_log,
            policy=self._policy,
            is_temporary=lambda error: isinstance(error, TemporaryFailure),
            sleep=self._sleep,
        )

    def _translate_error(self, right: str, error: ApiException) -> Exception:
        if error.status == 404:
            return _Missing(right)
        if error.status == 409:
            return Conflict(right)
        reason = shorten(" ".join(str(error.body or error.reason).split()), max_characters=300)
        if error.status in _TEMPORARY:
            return TemporaryFailure(f"the Kubernetes API could not {right} (HTTP {error.status}): {reason}", hint="run it again")
        if error.status == 403:
            verb, _, resource = right.partition(" ")
            return BadInput(
                f"Kubernetes does not allow to {verb} {resource} in namespace {self.namespace}",
                hint="apply an overlay of docker/kubernetes (docs/kubernetes.md), or ask for that permission",
            )
        if error.status == 401:
            return BadInput("Kubernetes does not accept the credentials (HTTP 401)", hint="log in again, and try `kubectl get pods`")
        return BadInput(f"Kubernetes refused to {right} (HTTP {error.status}): {reason}")


def _proxy_url(kubeconfig: str | None, cluster: str) -> str | None:
    """Return the `proxy-url` of a cluster in the files of a kubeconfig, or None: Kubernetes' client (30) does not read it."""
    merged = KubeConfigMerger(kubeconfig or KUBE_CONFIG_DEFAULT_LOCATION).config
    url = merged["clusters"].get_with_name(cluster)["cluster"].safe_get("proxy-url")
    return str(url) if url else None


def _reach_from_outside(settings: client.Configuration, proxy_url: str | None) -> None:
    """Let requests to the server of a kubeconfig go through its own proxy, else through that of the environment, as kubectl does.

    Kubernetes' client (30) reads neither. In a pod the server is one of the cluster, whose address a site's list of names without a proxy
    need not contain.

    Raises:
        BadInput: if the address of the server or of the proxy cannot be used.
    """
    if not is_server_url(settings.host):
        raise BadInput(
            "the server of the cluster in the kubeconfig is not an http or https address",
            hint="try `kubectl config view --minify`, and correct `server`",
        )
    of_file = None if proxy_url is None else read_proxy(proxy_url, named_by="proxy-url of the kubeconfig")
    proxy = of_file or proxy_for(settings.host, reads_all_proxy=False)
    settings.no_proxy = None
    settings.proxy, settings.proxy_headers = (None, None) if proxy is None else (proxy.url, proxy.headers)


class _Missing(Exception):
    """The object does not exist."""


def _time_limits() -> dict[str, Any]:
    return {"_request_timeout": _TIMEOUT_S}
