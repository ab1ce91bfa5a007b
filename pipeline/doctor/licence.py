"""Check that the licence of the data is accepted."""

from components.ingest.sources.open_source import require_consent
from pipeline.config import RunConfig
from pipeline.doctor.checks import Check


def check_licence(config: RunConfig) -> Check:
    """Return that the licence is accepted, or needs not be.

    Raises:
        BadInput: if it must be and was not.
    """
    require_consent(config.data)
    accepted_by = config.data.licence_accepted_by
    return Check("licence", "ok", f"accepted by {accepted_by}" if accepted_by else f"{config.data.licence}: needs no acceptance")
