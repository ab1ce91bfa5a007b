"""Check that an overlay of this checkout references images that exist."""

from pathlib import Path

from pipeline.doctor.checks import Check
from pipeline.overlays import OVERLAYS, kustomizations, placeholders


def check_overlays(folder: Path = OVERLAYS) -> list[Check]:
    """Refuse overlays of which none has all digests; nothing is checked outside of a checkout."""
    missing = {path.parent.name: placeholders(path) for path in kustomizations(folder)}
    complete = [name for name, images in missing.items() if not images]
    if complete:
        return [Check("overlay", "ok", f"{', '.join(complete)}: every image has its digest")]
    fix = "make images ... PUSH=1 writes those of celebdit; for the others: kustomize edit set image NAME=REGISTRY/NAME@sha256:..."
    return [
        Check("overlay", "fail", f"{folder / name} has placeholders for the digests of {', '.join(images)}", fix)
        for name, images in missing.items()
    ]
