"""Everything that a first run trips over, checked before it: on this machine (`machine.py`), or on the cluster (`cluster.py`).

Promises: each check is one line that says what was found and, if it is not good, what to do; a check that cannot be made from here says so
and fails nothing; no check changes anything, and no secret value is shown. What the steps see from inside is the preflight step's business.
"""

from pipeline.doctor.cluster import check_cluster
from pipeline.doctor.machine import check_machine

__all__ = ["check_cluster", "check_machine"]
