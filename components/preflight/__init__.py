"""The preflight step: check everything that a run needs before a GPU is requested."""
