"""The finalize step: the exit handler, which leaves no run RUNNING and sums the pipeline run up."""
