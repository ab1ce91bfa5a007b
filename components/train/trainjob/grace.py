"""Time that the nodes of a training get to stop, by the size of their checkpoint.

Promises: long enough to finish a step and to upload the checkpoint at 50 MB/s, because the disk of a node goes with its pod and no node
ends before the first one has uploaded; short enough that a node which hangs is soon given up.
"""

from components.train.spec import TrainSpec

STOP_MARGIN_S = 30
"""Seconds that a pod has beyond its ranks, to record why they ended."""
_STEP_S = 60
"""Seconds to finish the step that all ranks agree on, and to write the checkpoint to the disk."""
_UPLOAD_BYTES_PER_S = 50e6


def save_s(spec: TrainSpec) -> int:
    """Return for how many seconds the ranks of a node may save their work after they were asked to stop."""
    from model.memory_estimate import checkpoint_bytes  # noqa: PLC0415 - imports torch, which a step with one node has no use for

    return _STEP_S + round(checkpoint_bytes(spec.network, spec.training, distilled=spec.distill is not None) / _UPLOAD_BYTES_PER_S)
