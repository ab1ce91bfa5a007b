"""The process of the embedded MLflow server: MLflow's own app behind `TokenGate`, on a socket that the parent has bound.

Promises: everything secret comes from the environment; no request is logged with its query. `mlflow server` is not used because its child
closes inherited descriptors, and a server that binds its port itself can find it taken by another process.
"""

import os
import socket
import sys
import uuid

from components.process_settings import server_token
from components.system.garbage import import_without_search
from pipeline.home import DATABASE
from pipeline.token_gate import TokenGate

_SHUTDOWN_S = 5


def configure(artifacts: str) -> None:
    """Create or upgrade the database in the working directory, and set in the environment what `mlflow server` passes on (MLflow 3.17)."""
    from mlflow.environment_variables import _MLFLOW_IN_JOB_EXECUTOR, _MLFLOW_SERVER_BOOT_ID, _MLFLOW_SGI_NAME  # noqa: PLC0415
    from mlflow.server import constants  # noqa: PLC0415
    from mlflow.server.handlers import initialize_backend_stores  # noqa: PLC0415

    database, proxied = f"sqlite:///{DATABASE}", "mlflow-artifacts:/"
    os.environ |= {
        constants.BACKEND_STORE_URI_ENV_VAR: database,
        constants.REGISTRY_STORE_URI_ENV_VAR: database,
        constants.ARTIFACT_ROOT_ENV_VAR: proxied,
        constants.SERVE_ARTIFACTS_ENV_VAR: "true",
        constants.ARTIFACTS_DESTINATION_ENV_VAR: artifacts,
        _MLFLOW_SERVER_BOOT_ID.name: uuid.uuid4().hex,
        _MLFLOW_IN_JOB_EXECUTOR.name: "false",
        _MLFLOW_SGI_NAME.name: "uvicorn",
    }
    initialize_backend_stores(database, database, proxied)


def main(descriptor: int, artifacts: str) -> None:
    """Serve until SIGTERM on the listening socket `descriptor`, with the artifacts below `artifacts`."""
    listener = socket.socket(fileno=descriptor)
    token = server_token()
    with import_without_search():
        configure(artifacts)
        import uvicorn  # noqa: PLC0415
        from mlflow.server import _UVICORN_LOG_CONFIG  # noqa: PLC0415
        from mlflow.server.fastapi_app import app  # noqa: PLC0415 - reads the environment that `configure` has set

    gate = TokenGate(app, token, port=listener.getsockname()[1])
    # Links with the token stand in the access log, and nothing here is behind a proxy.
    settings = uvicorn.Config(
        gate, log_config=str(_UVICORN_LOG_CONFIG), access_log=False, proxy_headers=False, timeout_graceful_shutdown=_SHUTDOWN_S
    )
    uvicorn.Server(settings).run(sockets=[listener])


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
