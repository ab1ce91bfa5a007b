"""Check the source of a run before anything is started: that it can be read, and that it has images enough to be evaluated and scored."""

from components.errors import BadInput
from components.evaluate.measured import least_images
from components.ingest.sources.open_source import open_source
from components.reports.plural import plural
from pipeline.config import RunConfig


def check_source(config: RunConfig) -> None:
    """Open the source of `config` if it is on this machine, and compare its number of files with what evaluation and scores need.

    Raises:
        BadInput: if it cannot be read or has too few. DataRefused: if it is damaged.
    """
    source = open_source(config.data)
    count = None if source is None else source.count()
    least = max(config.data.min_images, least_images(config.evaluation))
    if count is not None and count < least:
        raise BadInput(
            f"data.source has {plural(count, 'file')}, and this configuration needs at least {plural(least, 'image')}",
            hint="name a source with more images" if least_images(config.evaluation) == least else "or lower data.min_images",
        )
    if count is not None:
        try:
            config.training.check_score_images(count)
        except ValueError as error:
            raise BadInput(f"training.{error}", hint=f"set training.score_images={count} or less; held-out images do not count") from error
