"""Layout of the object store. STORE is `CELEBDIT_STORE`, an `s3://bucket/prefix`:

    STORE/
      datasets/<name>/
        <dataset digest>/                      shard-00000.tar ..., manifest.parquet, report.html; dataset.json last
        requests/<request digest>.json         which dataset an ingest of this source and configuration made
      references/<dataset digest>/<extractor>/<treatment>/
                                               moments.npy, features.npy, mirrored.npy, manifold.npy; reference.json last
      weights/<sha256>.pth                     weights of a metric's network, by the digest of the file
      versions/<manifest digest>.json          sha256 and size of every file of a registered version
      models/<model>/<version>-<digest>/       a registered version's files, for KServe
      sweeps/<sweep digest>/records/<number>-<attempt>.json
                                               what was asked, started, scored, failed, decided and finished
      speeds/<digest>.json                     how fast the newest training of a network was on a kind of device, for `celebdit plan`
      checksums/                               digests of pages and image grids, by the key of their folder
      quarantine/<time>-<random>/              damaged objects that were replaced, by their keys; REASON.json says why
      runs/<run key>/
        checkpoints/step-<n>/<attempt>/        weights, ema-<name>, optimizer (.safetensors), state.json, MANIFEST.json;
                                               of a student of few steps auxiliary and auxiliary-optimizer too;
                                               COMMIT.json last; SCORE-<metric>.json once evaluated; QUARANTINE.json if corrupt
                                               <attempt> begins with 0- where it uploaded what an earlier one had left on disk
        snapshots/step-<n>/<attempt>/          the same files with the EMA weights alone; all are kept
        averages/step-<n>/<width>/             the same files with one post-hoc EMA
        samples/<checkpoint and sampler>/      images-<first>-<count>.npy; images-<first>-<count>.json last
        evaluations/<protocol>-<checkpoint>-<weights>/
                                               grid.png, nearest.png; report.json last; gate-<pipeline run>.html
        attempts/<attempt>/spec.json           the specification that the attempt trained by
        journal/<attempt>/                     metrics and files that MLflow has not received; empty when it has
        leases/                                heartbeats of the step that waits for a training on several nodes

A name in angle brackets is one segment of a key. "Last" means written last: what lacks that object is incomplete and is not read.
`docs/data.md` shows the same tree, and a test compares them. Builds locations only; reads and writes nothing.
"""

from dataclasses import dataclass

from components.errors import BadInput, shorten
from components.storage import StoreUri
from components.store_keys import store_key


@dataclass(frozen=True)
class RunLayout:
    """Locations of one run: its prefix and what lies below it."""

    prefix: StoreUri

    @property
    def checkpoints(self) -> StoreUri:
        """Checkpoints that training continues from."""
        return self.prefix / "checkpoints"

    @property
    def snapshots(self) -> StoreUri:
        """EMA weights at regular steps, all of which are kept."""
        return self.prefix / "snapshots"

    @property
    def averages(self) -> StoreUri:
        """Post-hoc EMAs that were computed from the snapshots."""
        return self.prefix / "averages"

    def home_of(self, checkpoint: StoreUri) -> StoreUri:
        """Return the folder that `checkpoint` lies in: that of snapshots or of post-hoc EMAs, else that of checkpoints."""
        homes = (self.snapshots, self.averages)
        return next((home for home in homes if checkpoint.key.startswith(f"{home.key}/")), self.checkpoints)

    @property
    def samples(self) -> StoreUri:
        """Generated images, in shards."""
        return self.prefix / "samples"

    @property
    def evaluations(self) -> StoreUri:
        """Reports and sample grids, one folder per protocol and weights."""
        return self.prefix / "evaluations"

    @property
    def attempts(self) -> StoreUri:
        """Specifications, one folder per attempt."""
        return self.prefix / "attempts"

    @property
    def journal(self) -> StoreUri:
        """Metrics and files that MLflow has not received, one folder per attempt."""
        return self.prefix / "journal"

    @property
    def leases(self) -> StoreUri:
        """Heartbeats of the step that waits for a training on several nodes."""
        return self.prefix / "leases"


@dataclass(frozen=True)
class StoreLayout:
    """Locations below the root of a store."""

    root: StoreUri

    @property
    def runs(self) -> StoreUri:
        """The prefix below which every run has a folder named by its run key."""
        return self.root / "runs"

    def key_of(self, uri: StoreUri) -> str:
        """Return the key of `uri` below the root, as it is stored in manifests and tags."""
        return uri.relative_to(self.root)

    def locate(self, address: str) -> StoreUri:
        """Return where in this store an address lies that a manifest or tag holds: a key, or an absolute address of an older release.

        Raises:
            BadInput: if it is neither.
        """
        key = store_key(address)
        if "://" in key:
            raise BadInput(
                f"{shorten(key)!r} is not an address in the layout of this project's stores",
                hint="the manifest or tag that holds it was not written by celebdit, or was changed: run the step that wrote it again",
            )
        return self.root.join(key)

    def run(self, run_key: str) -> RunLayout:
        """Return the locations of the run `run_key`."""
        return RunLayout(self.runs / run_key)

    def dataset(self, name: str) -> StoreUri:
        """Return the folder of all digests of the dataset `name`."""
        return self.root / "datasets" / name

    def requests(self, name: str) -> StoreUri:
        """Return the folder in which finished ingests of the dataset `name` are noted."""
        return self.dataset(name) / "requests"

    def reference(self, dataset_digest: str, extractor: str, treatment: str) -> StoreUri:
        """Return the folder of one set of reference features."""
        return self.root / "references" / dataset_digest / extractor / treatment

    def checksums(self, folder: StoreUri) -> StoreUri:
        """Return the object with the digests of the objects in `folder`."""
        below = folder.relative_to(self.root)
        return StoreUri(self.root.bucket, f"{self.root.key}/checksums/{below}.json".lstrip("/"))

    @property
    def quarantine(self) -> StoreUri:
        """The prefix that damaged objects are moved to."""
        return self.root / "quarantine"

    def sweep(self, digest: str) -> StoreUri:
        """Return the folder of a sweep's records."""
        return self.root / "sweeps" / digest / "records"

    def speed(self, digest: str) -> StoreUri:
        """Return the object with the speed of the newest training among those of one digest (`measured_speed.py`)."""
        return self.root / "speeds" / f"{digest}.json"

    def metric_weights(self, sha256: str) -> StoreUri:
        """Return the file of a metric's network with this digest; `celebdit weights add` puts it there."""
        return self.root / "weights" / f"{sha256}.pth"

    @property
    def version_records(self) -> StoreUri:
        """The folder of the manifests of registered versions."""
        return self.root / "versions"

    def model(self, name: str, version: str, manifest_digest: str) -> StoreUri:
        """Return the folder of a registered version that was exported for KServe."""
        return self.root / "models" / name / f"{version}-{manifest_digest[:16]}"
