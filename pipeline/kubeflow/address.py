"""Where Kubeflow Pipelines is and who we are there.

Promises: credentials come from the environment alone, and show in no representation and no error.
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
    """Where the API is and who we are there. Credentials do not show in the representation."""

    endpoint: str
    namespace: str | None
    token: str | None = field(default=None, repr=False)
    cookies: str | None = field(default=None, repr=False)
    ca_file: str | None = None

    @classmethod
    def find(cls, endpoint: str | None, namespace: str | None, environ: Mapping[str, str] = os.environ) -> "KfpAddress":
        """Take the endpoint and the namespace as given or from the environment, and credentials from the environment only.

        Raises:
            BadInput: if there is no endpoint, or it is not a plain http(s) address.
        """
        given = (endpoint or environ.get(ENDPOINT) or "").strip().rstrip("/")
        if not given:
            raise BadInput(
                "nobody said where Kubeflow Pipelines is",
                hint=f"give --endpoint or set {ENDPOINT}; kubectl -n kubeflow port-forward svc/ml-pipeline-ui 8080:80 makes it http://localhost:8080",
            )
        address = given if "://" in given else f"https://{given}"
        parts = urlsplit(address)
        if parts.username or parts.password:
            raise BadInput("the endpoint contains credentials", hint=f"set {TOKEN} or {COOKIES} instead")
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
            raise BadInput(f"--endpoint {given} is not an address", hint="write https://host/path, without what follows # in a browser")
        return cls(
            endpoint=address,
            namespace=namespace or environ.get(NAMESPACE) or None,
            token=environ.get(TOKEN) or None,
            cookies=environ.get(COOKIES) or None,
            ca_file=environ.get(CA_FILE) or None,
        )
