"""Which runs the registered versions of all models come from.

Promises: changes nothing; a version that names no run, because other software registered it or it was imported, is left out.
"""

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from mlflow.store.entities.paged_list import PagedList

from components.registry.tags import VersionTags
from components.tracking.client import Tracking

Entity = TypeVar("Entity")
_PAGE_MODELS, _PAGE_VERSIONS = 100, 1000


@dataclass(frozen=True)
class RegisteredVersion:
    """A version of a registered model, and the aliases that point to it."""

    model: str
    number: str
    aliases: tuple[str, ...]

    def __str__(self) -> str:
        aliases = f" ({', '.join(self.aliases)})" if self.aliases else ""
        return f"version {self.number} of {self.model}{aliases}"


def versions_by_run(tracking: Tracking) -> dict[str, list[RegisteredVersion]]:
    """Return the versions of each run key, of all models that this user can read, by name of the model and number."""
    with tracking.translate_errors():
        models = _all_pages(tracking.client.search_registered_models, _PAGE_MODELS)
        versions = _all_pages(tracking.client.search_model_versions, _PAGE_VERSIONS)
    aliases = {model.name: {alias: str(number) for alias, number in model.aliases.items()} for model in models}
    by_run: dict[str, list[RegisteredVersion]] = defaultdict(list)
    for version in sorted(versions, key=lambda version: (version.name, int(version.version))):
        run_key, number = VersionTags.from_mlflow(version.tags).run_key, str(version.version)
        if run_key is not None:
            pointing = sorted(alias for alias, target in aliases.get(version.name, {}).items() if target == number)
            by_run[run_key].append(RegisteredVersion(version.name, number, tuple(pointing)))
    return dict(by_run)


def _all_pages(search: Callable[..., PagedList[Entity]], page_size: int) -> list[Entity]:
    """Return what a search of MLflow's client finds, from all pages of its answer."""
    page = search(max_results=page_size)
    entities = list(page)
    while page.token:
        page = search(max_results=page_size, page_token=page.token)
        entities += page
    return entities
