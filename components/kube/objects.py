"""The type of Kubernetes objects; kept apart from the client, whose library takes a second to import."""

from typing import Any

KubernetesObject = dict[str, Any]
"""An object of the Kubernetes API, or a part of one, as JSON."""
