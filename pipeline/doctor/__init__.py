"""Check the prerequisites of a run: on this machine (`machine.py`) or on the cluster (`cluster.py`).

Promises: each check is one line with its result and, if there is a problem, its remedy; a check that cannot be run from here is "unknown"
and not a failure; what a check creates on a server, it deletes, as far as it may; no check shows the value of a secret. The preflight step
repeats the checks inside the cluster.
"""

from pipeline.doctor.cluster import check_cluster
from pipeline.doctor.machine import check_machine

__all__ = ["check_cluster", "check_machine"]
