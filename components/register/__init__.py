"""The register step: a checkpoint that passed the gate becomes a model version that can be served."""
