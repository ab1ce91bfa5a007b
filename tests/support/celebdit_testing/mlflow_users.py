"""MLflow with authentication, whose users have the rights that a test gives them."""

import json
import urllib.request
import uuid
from base64 import b64encode
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from celebdit_testing.servers import mlflow_server

ADMIN = ("admin", "canary-admin-password-0123")


@dataclass(frozen=True)
class MlflowUsers:
    """The server at `url`, as its administrator manages it."""

    url: str

    def request(self, path: str, body: dict[str, Any] | None = None) -> Any:
        """Return the answer to the administrator's request; a GET without a body."""
        headers = {"Content-Type": "application/json", "Authorization": "Basic " + b64encode(":".join(ADMIN).encode()).decode()}
        data = None if body is None else json.dumps(body).encode()
        with urllib.request.urlopen(urllib.request.Request(f"{self.url}/api/{path}", data, headers), timeout=60) as answer:
            return json.loads(answer.read())

    def add(self) -> tuple[str, str]:
        """Return name and password of a new user, who has no rights."""
        name, password = f"user-{uuid.uuid4().hex[:8]}", "canary-user-password-0123"
        self.request("2.0/mlflow/users/create", {"username": name, "password": password})
        return name, password

    def grant(self, user: str, resource_type: str, resource_id: str, permission: str) -> None:
        """Give a user a right on a resource, by the id of an experiment or the name of a model."""
        right = {"resource_type": resource_type, "resource_id": resource_id, "permission": permission}
        self.request("3.0/mlflow/users/permissions/grant", {"username": user, **right})

    def grant_all(self, user: str, resource_type: str, permission: str) -> None:
        """Give a user a right on all resources of a type, DENY included, by a role of its own."""
        role = self.request("3.0/mlflow/roles/create", {"workspace": "default", "name": f"role-{uuid.uuid4().hex[:8]}"})["role"]["id"]
        right = {"resource_type": resource_type, "resource_pattern": "*", "permission": permission}
        self.request("3.0/mlflow/roles/permissions/add", {"role_id": role, **right})
        self.request("3.0/mlflow/roles/assign", {"username": user, "role_id": role})

    def experiment(self, name: str) -> str:
        """Return the id of a new experiment of the administrator."""
        return str(self.request("2.0/mlflow/experiments/create", {"name": name})["experiment_id"])

    def model(self, name: str, *, versions: int = 0) -> None:
        """Make a registered model of the administrator."""
        self.request("2.0/mlflow/registered-models/create", {"name": name})
        for _ in range(versions):
            tags = [{"key": "checkpoint.digest", "value": "d" * 64}]
            self.request("2.0/mlflow/model-versions/create", {"name": name, "source": "s3://bucket/x", "tags": tags})


@contextmanager
def mlflow_with_users(folder: Path, *, default: str = "NO_PERMISSIONS") -> Iterator[MlflowUsers]:
    """Serve MLflow's basic-auth app, with the right `default` on everything that nobody was given rights on."""
    folder.mkdir(parents=True, exist_ok=True)
    ini = folder / "basic_auth.ini"
    ini.write_text(
        f"[mlflow]\ndefault_permission = {default}\ndatabase_uri = sqlite:///{folder / 'users.db'}\n"
        f"admin_username = {ADMIN[0]}\nadmin_password = {ADMIN[1]}\nauth_cache_ttl_seconds = 30\n"
        "authorization_function = mlflow.server.auth:authenticate_request_basic_auth\n"
    )
    environment = {"MLFLOW_AUTH_CONFIG_PATH": str(ini), "MLFLOW_FLASK_SERVER_SECRET_KEY": "canary-flask-key-0123456789"}
    with mlflow_server(folder, environment=environment, options=("--app-name", "basic-auth")) as server:
        yield MlflowUsers(server.url)
