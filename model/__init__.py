"""The network, its diffusion maths and its training loop, in pure PyTorch.

Imports nothing of pipelines, MLflow, object storage, image files or the command line, and reads no environment variable.
"""
