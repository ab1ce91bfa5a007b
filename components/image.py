"""The names of the two images that the steps run in; `compile` replaces them by digests.

Locally, where steps run as subprocesses, the names are never looked up. They contain "python" because kfp's local runner warns otherwise.
"""

CPU_IMAGE = "localhost/celebdit-python-cpu:dev"
GPU_IMAGE = "localhost/celebdit-python-gpu:dev"
