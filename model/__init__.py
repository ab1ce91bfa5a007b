"""The network, its diffusion maths and its training loop, in pure PyTorch.

Nothing below this package knows about pipelines, MLflow, object storage, image files, the command line or environment variables.
"""
