"""Weights: resolve a source to files, recombine snapshots into a post-hoc EMA, import the published checkpoint."""
