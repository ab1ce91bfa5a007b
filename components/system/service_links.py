"""Variables that Kubernetes sets for the Services of a namespace, and that programs read as settings of their own.

With a Service called `mlflow`, every pod beside it gets MLFLOW_PORT=tcp://10.0.0.1:5000 unless its `enableServiceLinks` is false, which
Kubeflow Pipelines' SDK (2.17) cannot set for the pod of a step.
"""

import os
from collections.abc import MutableMapping

_SERVICES = ("MLFLOW_", "POSTGRES_", "S3_")


def drop_service_links(environ: MutableMapping[str, str] | None = None) -> list[str]:
    """Remove the addresses of Services from `environ`, by default from this process's, and return the names of the variables."""
    environ = os.environ if environ is None else environ
    names = sorted(name for name, value in environ.items() if name.startswith(_SERVICES) and value.startswith("tcp://"))
    for name in names:
        del environ[name]
    return names
