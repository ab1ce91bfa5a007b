"""Where Kubeflow Pipelines is and who we are there.

Promises: credentials come from the environment alone, and show in no representation and no error.
"""

from dataclasses import dataclass, field
from urllib.parse import urlsplit

from components.environment import KFP_COOKIES, KFP_ENDPOINT, KFP_TOKEN
from components.errors import BadInput
from components.settings import CommandSettings


@dataclass(frozen=True)
class KfpAddress:
    """Where the API is and who we are there. Credentials do not show in the representation."""

    endpoint: str
    namespace: str | None
    token: str | None = field(default=None, repr=False)
    cookies: str | None = field(default=None, repr=False)
    ca_file: str | None = None

    @classmethod
    def find(cls, endpoint: str | None, namespace: str | None, settings: CommandSettings | None = None) -> "KfpAddress":
        """Take the endpoint and the namespace as given or from the environment, and credentials from the environment only.

        Raises:
            BadInput: if there is no endpoint, or it is not a plain http(s) address.
        """
        settings = CommandSettings.from_environment() if settings is None else settings
        given = (endpoint or settings.kfp_endpoint or "").strip().rstrip("/")
        if not given:
            raise BadInput(
                "nobody said where Kubeflow Pipelines is",
                hint=f"give --endpoint or set {KFP_ENDPOINT}; kubectl -n kubeflow port-forward svc/ml-pipeline-ui 8080:80 makes it http://localhost:8080",
            )
        address = given if "://" in given else f"https://{given}"
        parts = urlsplit(address)
        if parts.username or parts.password:
            raise BadInput("the endpoint contains credentials", hint=f"set {KFP_TOKEN} or {KFP_COOKIES} instead")
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
            raise BadInput(f"--endpoint {given} is not an address", hint="write https://host/path, without what follows # in a browser")
        return cls(
            endpoint=address,
            namespace=namespace or settings.kfp_namespace,
            token=settings.kfp_token,
            cookies=settings.kfp_cookies,
            ca_file=settings.kfp_ca_file,
        )
