"""Requests: which dataset an ingest of a source with some settings made, so that it is not made twice.

Promises: a request is a function of the source's content and of the settings. A recorded dataset may be damaged or gone since.
"""

from components.errors import DataRefused
from components.ingest.candidates import NAME_RULES, Source
from components.ingest.config import DataConfig
from components.ingest.dataset.publish import accepted_by
from components.ingest.verdicts import PIXEL_RULES
from components.manifests import DatasetManifest
from components.storage import ObjectMissing, StoreUri
from components.storage.reader import StoreReader
from components.stores.dataset_content import FORMAT
from components.stores.layout import StoreLayout
from model.canonical import digest_of


def request_digest(source: Source, config: DataConfig) -> str:
    """Return the digest of an ingest of `source` with the settings of `config`; reads all of a local source."""
    settings = config.model_dump(mode="json", exclude={"source"})
    rules = {"format": FORMAT, "names": NAME_RULES, "pixels": PIXEL_RULES}
    return digest_of({"source": source.fingerprint(), "config": settings, **rules})


def request_uri(request: str, config: DataConfig, layout: StoreLayout) -> StoreUri:
    """Return where the dataset of a request is recorded."""
    return layout.requests(config.name) / f"{request}.json"


def recorded_dataset(uri: StoreUri, config: DataConfig, store: StoreReader) -> DatasetManifest | None:
    """Return the manifest of the dataset that is recorded at `uri`, or None if there is none of this name and size."""
    try:
        made = DatasetManifest.parse(store.get_bytes(uri), origin=str(uri))
    except (ObjectMissing, DataRefused):
        return None
    return made if (made.name, made.image_px) == (config.name, config.image_px) else None


def has_same_terms(dataset: DatasetManifest, config: DataConfig) -> bool:
    """Return whether a dataset was ingested under the licence, and by the consent, of `config`."""
    return (dataset.licence, dataset.licence_accepted_by) == (config.licence, accepted_by(config))
