"""Endpoint and credentials of Kubeflow Pipelines.

Promises: credentials are read from the environment only, and appear in no representation and no error.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from components.errors import BadInput

ENDPOINT = "KF_PIPELINES_ENDPOINT"
NAMESPACE = "CELEBDIT_KFP_NAMESPACE"
TOKEN = "CELEBDIT_KFP_TOKEN"  # noqa: S105 - the name of a variable
COOKIES = "CELEBDIT_KFP_COOKIES"
CA_FILE = "CELEBDIT_KFP_CA_FILE"


@dataclass(frozen=True)
class KfpAddress:
    """Endpoint, namespace and credentials; the representation omits the credentials."""

    endpoint: str
    namespace: str | None
    token: str | None = field(default=None, repr=False)
    cookies: str | None = field(default=None, repr=False)
    ca_file: str | None = None

    @classmethod
    def find(cls, endpoint: str | None, namespace: str | None, environ: Mapping[str, str] = os.environ) -> "KfpAddress":
        """Read the credentials, and endpoint and namespace if they are None, from the environment.

        Raises:
            BadInput: if no endpoint is configured, or it is not a plain http(s) URL.
        """
        value = (endpoint or environ.get(ENDPOINT) or "").strip().rstrip("/")
        if not value:
            raise BadInput(
                "no Kubeflow Pipelines endpoint is configured",
                hint=f"give --endpoint or set {ENDPOINT}; after kubectl -n kubeflow port-forward svc/ml-pipeline-ui 8080:80 it is http://localhost:8080",
            )
        address = value if "://" in value else f"https://{value}"
        parts = urlsplit(address)
        if parts.username or parts.password:
            raise BadInput("the endpoint contains credentials", hint=f"set {TOKEN} or {COOKIES} instead")
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
            raise BadInput(f"--endpoint {value} is not a valid URL", hint="use https://host/path, without the part after # in a browser")
        return cls(
            endpoint=address,
            namespace=namespace or environ.get(NAMESPACE) or None,
            token=environ.get(TOKEN) or None,
            cookies=environ.get(COOKIES) or None,
            ca_file=environ.get(CA_FILE) or None,
        )
