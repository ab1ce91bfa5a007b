"""Checkpoints of a training run: upload, EMA snapshots, resume."""
