"""The door to Kubeflow Pipelines.

`address` says where it is and who we are there, `requests` how it is asked and what an answer means, `server` what is asked of it. Its
generated client is imported in this package alone.
"""

from pipeline.kubeflow.address import KfpAddress
from pipeline.kubeflow.requests import Patience
from pipeline.kubeflow.server import Kubeflow, Version

__all__ = ["KfpAddress", "Kubeflow", "Patience", "Version"]
