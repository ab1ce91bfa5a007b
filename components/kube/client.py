"""The door to the Kubernetes API: the few verbs that we need in one namespace, with errors for people.

Promises: a missing object is None and not an exception; an API server that is away is waited for; a right that is missing is named as the
verb and the resource that an administrator must allow. What the objects mean is the caller's business.
"""

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

from components.deployment import NAMESPACE
from components.errors import BadInput, TemporaryFailure
from components.kube.objects import KubernetesObject
from components.system.retry import RetryPolicy, retry

_IN_CLUSTER = "KUBERNETES_SERVICE_HOST"
_TOKEN_FOLDER = Path("/var/run/secrets/kubernetes.io/serviceaccount")
_TIMEOUT_S = (10.0, 60.0)
_STREAMED: dict[str, Any] = {"_preload_content": False, "_request_timeout": (10.0, 300.0)}
"""A log that says nothing for so long is asked for again: its node may be gone without a word."""
_TEMPORARY = (408, 429, 500, 502, 503, 504)
T = TypeVar("T")


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
        self._core = client.CoreV1Api(api)
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
                found = (_TOKEN_FOLDER / "namespace").read_text().strip()
            else:
                config.load_kube_config(config_file=environ.get("KUBECONFIG"), context=context, client_configuration=settings)
                _, active = config.list_kube_config_contexts(config_file=environ.get("KUBECONFIG"))
                found = active["context"].get("namespace", "default")
        except (config.ConfigException, OSError, KeyError) as error:
            raise BadInput(
                f"no Kubernetes cluster is configured here: {error}", hint="try `kubectl get pods`: its KUBECONFIG and context are used"
            ) from error
        return cls(client.ApiClient(settings), namespace or environ.get(NAMESPACE) or found, deadline_s=deadline_s)

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
        """Yield the lines of a container's log as they come, with their line feed and each after its time, until it ends.

        What Kubernetes takes for `since` is whole seconds: lines of that second come again. It may also end because the other side is
        restarted, and then with a piece of a line.

        Raises:
            TemporaryFailure: if it is not there, the connection broke, or nothing came for a while. BadInput: if it is not ours to read.
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
                raise self._refused("get pods/log", error) from error
            raise TemporaryFailure(f"pod {pod} has no log (HTTP {error.status})", hint="run it again") from error
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise TemporaryFailure(f"the log of pod {pod} broke off", hint="run it again") from error

    def custom(self, group: str, version: str, plural: str, name: str, *, of_cluster: bool = False) -> KubernetesObject | None:
        """Return a custom object, or None; of this namespace unless it is the cluster's."""
        if of_cluster:
            return self._get(
                f"get {plural}.{group}", lambda: self._custom.get_cluster_custom_object(group, version, plural, name, **_patience())
            )
        return self._get(
            f"get {plural}.{group}",
            lambda: self._custom.get_namespaced_custom_object(group, version, self.namespace, plural, name, **_patience()),
        )

    def create_custom(self, group: str, version: str, plural: str, body: KubernetesObject) -> KubernetesObject:
        """Create a custom object.

        Raises:
            Conflict: if there is one of that name, be it from an earlier try of this very call.
        """

        def create() -> Any:
            return self._custom.create_namespaced_custom_object(group, version, self.namespace, plural, body, **_patience())

        return dict(self._patiently(f"create {plural}.{group}", create))

    def delete_custom(self, group: str, version: str, plural: str, name: str) -> None:
        """Delete a custom object and what it made, and wait until it is gone; done already is done."""

        def delete() -> Any:
            return self._custom.delete_namespaced_custom_object(
                group, version, self.namespace, plural, name, propagation_policy="Foreground", **_patience()
            )

        self._get(f"delete {plural}.{group}", delete)
        deadline_s = time.monotonic() + self._policy.deadline_s
        while self.custom(group, version, plural, name) is not None:
            if time.monotonic() > deadline_s:
                raise TemporaryFailure(f"{plural} {name} was deleted and does not go away", hint=f"kubectl describe {plural} {name}")
            self._sleep(1.0)

    def may(self, verb: str, resource: str, group: str = "", subresource: str = "", account: str | None = None) -> bool:
        """Return whether we, or a service account of this namespace, may do this here."""
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
        answer = self._patiently("create subjectaccessreviews.authorization.k8s.io", lambda: review(body, **_patience()))
        return bool(answer.status.allowed)

    def server_version(self) -> str:
        """Return the version of the API server."""
        return str(self._patiently("get /version", lambda: self._plain("/version"))["gitVersion"])

    def _get(self, right: str, call: Callable[[], Any]) -> KubernetesObject | None:
        try:
            return dict(self._patiently(right, call))
        except _Missing:
            return None

    def _list(self, right: str, call: Callable[[], Any]) -> list[KubernetesObject]:
        return list(self._patiently(right, call)["items"])

    def _plain(self, path: str, query: Sequence[tuple[str, str]] = ()) -> Any:
        """Return what is at `path` as plain JSON: the client's models refuse objects that lack what they think is required."""
        return self._request(path, query, response_type="object", **_patience())

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

    def _patiently(self, right: str, call: Callable[[], T]) -> T:
        def once() -> T:
            try:
                return call()
            except ApiException as error:
                raise self._refused(right, error) from error
            except urllib3.exceptions.HTTPError as error:
                reason = str(getattr(error, "reason", None) or error).split(":")[-1].strip()
                raise TemporaryFailure(f"the Kubernetes API cannot be reached to {right}: {reason}", hint="run it again") from error

        return retry(once, policy=self._policy, is_temporary=lambda error: isinstance(error, TemporaryFailure), sleep=self._sleep)

    def _refused(self, right: str, error: ApiException) -> Exception:
        if error.status == 404:
            return _Missing(right)
        if error.status == 409:
            return Conflict(right)
        said = " ".join(str(error.body or error.reason).split())[:300]
        if error.status in _TEMPORARY:
            return TemporaryFailure(f"the Kubernetes API could not {right} (HTTP {error.status}): {said}", hint="run it again")
        if error.status == 403:
            verb, _, resource = right.partition(" ")
            return BadInput(
                f"Kubernetes does not allow to {verb} {resource} in namespace {self.namespace}",
                hint="apply an overlay of docker/kubernetes (docs/kubernetes.md), or ask for that right",
            )
        if error.status == 401:
            return BadInput("Kubernetes does not know who we are (HTTP 401)", hint="log in again, and try `kubectl get pods`")
        return BadInput(f"Kubernetes refused to {right} (HTTP {error.status}): {said}")


class _Missing(Exception):
    """The object is not there."""


def _patience() -> dict[str, Any]:
    return {"_request_timeout": _TIMEOUT_S}
