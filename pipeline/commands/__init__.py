"""The commands of `celebdit`, one file per subject."""
