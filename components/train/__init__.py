"""The train step: torchrun on this machine, resuming from the newest whole checkpoint in object storage."""
