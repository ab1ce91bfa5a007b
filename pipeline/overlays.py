"""The digests of images in the Kubernetes overlays of a checkout: write those of the lock file, find placeholders.

Promises: only the entries of our images are changed, comments and everything else keep their bytes; writing the same images again changes
nothing. Does not run kustomize.
"""

import re
from pathlib import Path

from components.errors import BadInput
from pipeline.images import Images

OVERLAYS = Path("docker/kubernetes/overlays")
_ENTRY = r"(?m)^(?P<head>(?P<indent> *)- name: {name}\n)(?P<body>(?:(?P=indent)  \S.*\n)*)"
_PLACEHOLDER = re.compile(r"digest: *[\"']?sha256:0{64}")


def kustomizations(folder: Path = OVERLAYS) -> list[Path]:
    """Return the kustomization files of the overlays below `folder`, none if it does not exist."""
    return sorted(folder.glob("*/kustomization.yaml"))


def write_digests(path: Path, images: Images) -> bool:
    """Write the digests of `images` into the kustomization at `path`; return whether that changed it.

    Raises:
        BadInput: if it has no entry for one of them.
    """
    old = text = path.read_text()
    for name, reference in (("celebdit-cpu", images.cpu), ("celebdit-gpu", images.gpu)):
        repository, _, digest = reference.partition("@")
        entry = re.compile(_ENTRY.format(name=re.escape(name)))
        match = entry.search(text)
        if match is None:
            raise BadInput(f"{path} has no image {name}", hint=f"add it: kustomize edit set image {name}={reference}")
        indent = match["indent"]
        body = f"{indent}  newName: {repository}\n{indent}  digest: {digest}\n"
        text = text[: match.start()] + match["head"] + body + text[match.end() :]
    if text != old:
        path.write_text(text)
    return text != old


def placeholders(path: Path) -> list[str]:
    """Return the names of the images of a kustomization whose digest is still the placeholder."""
    entries = re.finditer(_ENTRY.format(name=r"(?P<name>\S+)"), path.read_text())
    return [match["name"] for match in entries if _PLACEHOLDER.search(match["body"])]
