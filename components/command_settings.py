"""Settings of the command line: the variables that `celebdit` reads before a run has its own environment.

Promises: reads the environment once and checks nothing, so that every command can report a bad value in its own words. The settings of a
process of a run are in `components/settings.py`.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from components.environment import (
    HOME,
    KFP_CA_FILE,
    KFP_COOKIES,
    KFP_ENDPOINT,
    KFP_NAMESPACE,
    KFP_TOKEN,
    MLFLOW,
    S3_ENDPOINT,
    S3_ENDPOINT_FIRST,
    STORE,
    VERIFY_KEY,
    WEBHOOK,
    WORKSPACE,
)


@dataclass(frozen=True)
class CommandSettings:
    """What the command line reads from the environment. Credentials do not show in the representation."""

    home: Path
    """The folder for local state."""
    store_uri: str | None
    mlflow_uri: str | None
    mlflow_workspace: str | None
    s3_endpoint: str | None
    webhook_url: str | None = field(repr=False)
    kfp_endpoint: str | None
    kfp_namespace: str | None
    kfp_token: str | None = field(repr=False)
    kfp_cookies: str | None = field(repr=False)
    kfp_ca_file: str | None
    registry_auth_file: str | None
    """The file with logins for container registries that the user names."""
    runtime_dir: str | None
    """The user's folder of podman's logins."""
    docker_config: str | None
    """The folder of docker's logins."""
    verify_key: str | None
    """The file with the public key by which versions must be signed."""

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] | None = None) -> "CommandSettings":
        """Read the settings from `environ`, by default the environment of this process. Nothing is required, nothing is checked."""
        environ = os.environ if environ is None else environ

        def text(name: str) -> str | None:
            return environ.get(name, "").strip() or None

        return cls(
            home=Path(environ.get(HOME) or ".celebdit"),
            store_uri=text(STORE),
            mlflow_uri=text(MLFLOW),
            mlflow_workspace=text(WORKSPACE),
            s3_endpoint=text(S3_ENDPOINT_FIRST) or text(S3_ENDPOINT),
            webhook_url=text(WEBHOOK),
            kfp_endpoint=text(KFP_ENDPOINT),
            kfp_namespace=text(KFP_NAMESPACE),
            kfp_token=text(KFP_TOKEN),
            kfp_cookies=text(KFP_COOKIES),
            kfp_ca_file=text(KFP_CA_FILE),
            registry_auth_file=text("REGISTRY_AUTH_FILE"),
            runtime_dir=text("XDG_RUNTIME_DIR"),
            docker_config=text("DOCKER_CONFIG"),
            verify_key=text(VERIFY_KEY),
        )

    @property
    def endpoints(self) -> tuple[str, ...]:
        """The names of the variables of `celebdit run`'s two servers that are set."""
        return tuple(name for name, value in ((STORE, self.store_uri), (MLFLOW, self.mlflow_uri)) if value)
