"""The ingest step as a KFP component: a thin contract around `ingest.py`."""

from kfp import dsl

from components.deployment import CPU_IMAGE


@dsl.component(base_image=CPU_IMAGE, install_kfp_package=False)
def ingest(data: str, dataset: dsl.Output[dsl.Dataset], page: dsl.Output[dsl.HTML]) -> str:
    """Turn a source of images into a validated, content-addressed dataset in object storage.

    Args:
        data: The `data` section as canonical JSON.
        dataset: The dataset's manifest: location, digest, counts, licence.
        page: The report of the ingest, for KFP's run page.

    Returns:
        The dataset's digest.
    """
    from components.runtime.context import step

    with step("ingest") as context:
        from pathlib import Path

        from components.errors import TrackingUnavailable
        from components.ingest.config import DataConfig
        from components.ingest.dataset.publish import REPORT
        from components.ingest.ingest import run
        from components.ingest.record import record
        from components.runtime.context import read_section

        manifest = run(read_section(DataConfig, data, name="data"), context)
        try:
            record(manifest, context)
        except TrackingUnavailable as unavailable:
            context.events.note(f"the dataset is stored, but was not recorded in MLflow: {unavailable.message}")
        context.write_manifest(manifest, dataset)
        context.store.get_file(context.layout.locate(manifest.uri) / REPORT, Path(page.path))
    return manifest.digest
