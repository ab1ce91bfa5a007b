"""Kubeflow Pipelines client.

`address` has endpoint and credentials, `requests` makes one request with retries and errors, `bodies` has what is sent, and `server` the
operations. Only this package imports the generated client `kfp_server_api`.
"""

from pipeline.kubeflow.address import KfpAddress
from pipeline.kubeflow.bodies import Version, has_timing, mlflow_plugin
from pipeline.kubeflow.requests import Patience
from pipeline.kubeflow.server import Kubeflow

__all__ = ["KfpAddress", "Kubeflow", "Patience", "Version", "has_timing", "mlflow_plugin"]
