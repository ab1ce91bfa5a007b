"""The measurement of a trial that storage has already: of this sweep before it was killed, or of another one with the same trial."""

from components.evaluate.spec import REPORT_FILE, EvaluateSpec
from components.manifests import CheckpointReference, DatasetManifest, EvaluationReport
from components.storage.reader import StoreReader
from components.stores.layout import StoreLayout
from components.train.spec import run_key
from model.ema import EmaName
from pipeline.config import RunConfig

_UNKNOWN_DIGEST = "0" * 64


def stored_report(config: RunConfig, dataset: DatasetManifest, reader: StoreReader, layout: StoreLayout) -> EvaluationReport | None:
    """Return the report of `config`, trained to its last step on `dataset` and measured under its protocol, or None.

    The training may have gone on since, so that the checkpoint that was measured is not stored any more.
    """
    key = run_key(config.recipe.identity(dataset.digest))
    any_checkpoint = CheckpointReference(run_key=key, uri="any", digest=_UNKNOWN_DIGEST, step=0, dataset_digest=dataset.digest)
    protocol = EvaluateSpec(
        checkpoint=any_checkpoint,
        model=config.recipe.model_spec,
        dataset=dataset,
        evaluation=config.evaluation,
        sampling=config.sampling,
        resources=config.resources,
    ).protocol
    begin, end = f"{protocol.digest[:16]}-", f"-{EmaName(config.sampling.ema).group}"
    folder = layout.run(key).evaluations
    for item in reader.list(folder):
        name, _, file = item.uri.relative_to(folder).partition("/")
        if file != REPORT_FILE or not (name.startswith(begin) and name.endswith(end)):
            continue
        report = EvaluationReport.parse(reader.get_bytes(item.uri), origin=str(item.uri))
        if report.checkpoint_step == config.training.total_steps and report.protocol_digest == protocol.digest:
            return report
    return None
