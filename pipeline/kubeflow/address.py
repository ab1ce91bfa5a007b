"""Endpoint and credentials of Kubeflow Pipelines.

Promises: credentials are read from the environment only, and appear in no representation and no error.
"""

from dataclasses import dataclass, field

from components.address import is_server_url, split_url
from components.command_settings import CommandSettings
from components.environment import KFP_COOKIES, KFP_ENDPOINT, KFP_TOKEN
from components.errors import BadInput


@dataclass(frozen=True)
class KfpAddress:
    """Endpoint, namespace and credentials; the representation omits the credentials."""

    endpoint: str
    namespace: str | None
    token: str | None = field(default=None, repr=False)
    cookies: str | None = field(default=None, repr=False)
    ca_file: str | None = None

    @classmethod
    def find(cls, endpoint: str | None, namespace: str | None, settings: CommandSettings | None = None) -> "KfpAddress":
        """Read the credentials, and endpoint and namespace if they are None, from the environment.

        Raises:
            BadInput: if no endpoint is configured, or it is not a plain http(s) URL.
        """
        settings = CommandSettings.from_environment() if settings is None else settings
        value = (endpoint or settings.kfp_endpoint or "").strip().rstrip("/")
        if not value:
            raise BadInput(
                "no Kubeflow Pipelines endpoint is configured",
                hint=f"give --endpoint or set {KFP_ENDPOINT}; after kubectl -n kubeflow port-forward svc/ml-pipeline-ui 8080:80 it is http://localhost:8080",
            )
        address = value if "://" in value else f"https://{value}"
        parts = split_url(address)
        if "@" in address:  # also where the password has characters that make it no URL
            raise BadInput("the endpoint contains credentials", hint=f"set {KFP_TOKEN} or {KFP_COOKIES} instead")
        if parts is None or not is_server_url(address) or parts.query or parts.fragment:
            raise BadInput(f"--endpoint {value} is not a valid URL", hint="use https://host/path, without the part after # in a browser")
        return cls(
            endpoint=address,
            namespace=namespace or settings.kfp_namespace,
            token=settings.kfp_token,
            cookies=settings.kfp_cookies,
            ca_file=settings.kfp_ca_file,
        )
