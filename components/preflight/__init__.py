"""The preflight step: everything that a run needs is checked before a GPU is asked for."""
