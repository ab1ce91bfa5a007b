"""How fast is ingest, beside what it cannot be faster than? Prints one JSON object.

    OMP_NUM_THREADS=1 .venv/bin/python benchmarks/ingest.py --images 10000 --rounds 3

In each round, on the same machine and the same bytes: (1) a loop in as many processes as ingest has workers that reads each image from
the zip, decodes it and takes its sha256, and nothing else; (2) `ingest.run` from the zip to a local S3 server; (3) `rclone copyto` of the
zip to the same server. The server shares the cores with ingest; its processor time is
reported separately. Ratios are within a round, and the median
round is reported; on a machine that others use, the ratio of processor times says more than that of wall times. Memory is the resident set
of ingest's processes together, sampled. `--large FORMAT --workers 8` measures only that, with large images among small ones.
`--beside FOLDER` compares two versions: another checkout measures the same archive after each round, with its own code and `.venv`.
"""

import argparse
import io
import json
import os
import resource
import secrets
import shutil
import socket
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
import zipfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
from PIL import Image, ImageChops

from components.ingest.config import DataConfig
from components.ingest.decoding.pool import default_workers
from components.ingest.ingest import run
from components.ingest.sources.synthetic import draw_face, encode_face
from components.runtime.context import StepContext
from components.runtime.events import Events
from components.settings import Settings
from components.system.process import spawn, stop

_TINTS = 20
_JPEG_QUALITY = 95
_SAMPLE_EVERY_S = 0.05
_LARGE_PICTURES, _SMALL_PER_LARGE = 24, 20
_LARGE_PX, _NOISE_PX = 5590, 350
_LARGE_OPTIONS = {"JPEG": {"quality": 90}, "PNG": {"compress_level": 1}}
_BUCKET = "bucket"
_DECODE_AND_HASH = """
import hashlib, io, sys, zipfile
from PIL import Image
with zipfile.ZipFile(sys.argv[1]) as opened:
    for entry in opened.infolist()[int(sys.argv[2])::int(sys.argv[3])]:
        data = opened.read(entry)
        Image.open(io.BytesIO(data)).load()
        hashlib.sha256(data).hexdigest()
"""
"""A program of its own, because what this file imports would count as the loop's time."""


def main() -> None:
    """Run the benchmark as the command line asks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=default_workers())
    parser.add_argument("--archive", type=Path, help="keep the drawn archive here, and use it again")
    parser.add_argument("--beside", type=Path, help="another checkout with a .venv, measured in turn with this one")
    parser.add_argument("--large", choices=("JPEG", "PNG", "TIFF"), help="only the memory that 24 images of 31 megapixels take")
    parser.add_argument("--image-px", type=int, default=256, help="with --large: side of the images that come out")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="celebdit-bench-") as name:
        folder = Path(name)
        if options.large:
            print(json.dumps(_measure_large_images(folder, options.large, options.image_px, options.workers), indent=2))
            return
        archive = options.archive or folder / "faces.zip"
        if not archive.exists():
            _draw_archive(archive, options.images, options.workers)
        rounds, others = [], []
        with _s3_server(folder / "s3") as (endpoint, server):
            for n in range(options.rounds):
                rounds.append(_round(archive, folder / f"round-{n}", endpoint, server, options.workers))
                if options.beside:
                    others.append(_round_of(options.beside.resolve(), archive.resolve(), options.workers))
    facts = {"benchmark": "ingest", "workers": options.workers, "cores": os.cpu_count(), **_comparison(rounds, others)}
    median = {key: round(statistics.median(entry[key] for entry in rounds), 3) for key in rounds[0]}
    print(json.dumps({**facts, "median": median, "rounds": rounds}, indent=2))


def _draw_archive(path: Path, images: int, workers: int) -> None:
    """Draw a zip of distinct JPEGs of 256 pixels: faces, each in some tints, because drawing takes longer than ingesting."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial, number = path.with_suffix(".partial"), 0
    with zipfile.ZipFile(partial, "w", zipfile.ZIP_STORED) as archive, ProcessPoolExecutor(workers) as pool:
        for encoded in pool.map(_tinted_faces, range(-(-images // _TINTS)), chunksize=8):
            for data in encoded[: images - number]:
                archive.writestr(f"celeba_hq_256/{number:05d}.jpg", data)
                number += 1
    partial.replace(path)


def _tinted_faces(index: int) -> list[bytes]:
    face = draw_face(0, index, 256)
    return [_jpeg(ImageChops.subtract(face, Image.new("RGB", face.size, (3 * tint, tint, 2 * tint)))) for tint in range(_TINTS)]


def _jpeg(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=_JPEG_QUALITY, subsampling=0)
    return buffer.getvalue()


def _measure_large_images(folder: Path, kind: str, image_px: int, workers: int) -> dict[str, float | str]:
    """Measure an ingest of large images of one format among small JPEGs."""
    archive = folder / "large.zip"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_STORED) as opened:
        for number in range(_LARGE_PICTURES):
            noise = Image.frombytes("RGB", (_NOISE_PX, _NOISE_PX), os.urandom(3 * _NOISE_PX**2))
            buffer = io.BytesIO()
            noise.resize((_LARGE_PX, _LARGE_PX)).save(buffer, kind, **_LARGE_OPTIONS.get(kind, {}))
            opened.writestr(f"{number}.{kind.lower()}", buffer.getvalue())
            for small in range(_SMALL_PER_LARGE):
                opened.writestr(f"{number}-{small}.jpg", encode_face(number, small, 256))
    config = DataConfig(name="benchmark", source=str(archive), image_px=image_px, max_rejected=1.0, max_image_bytes=2**27)
    with _s3_server(folder / "s3") as (endpoint, _):
        _, _, peak_mb = _ingest(config, folder / "run", endpoint, workers)
    return {"benchmark": "ingest of large images", "format": kind, "file_mb": len(buffer.getvalue()) / 1e6, "peak_memory_mb": peak_mb}


def _round(archive: Path, folder: Path, endpoint: str, server: psutil.Process, workers: int) -> dict[str, float]:
    """Measure the three once."""
    size_mb = archive.stat().st_size / 1e6
    with zipfile.ZipFile(archive) as opened:
        images = len(opened.infolist())
    loop_s, loop_cpu_s = _loop(archive, workers)
    server_before_s = _cpu_s(server)
    config = DataConfig(name="benchmark", source=str(archive), image_px=256)
    ingest_s, ingest_cpu_s, peak_mb = _ingest(config, folder, endpoint, workers)
    server_cpu_s = _cpu_s(server) - server_before_s
    copy_s = _rclone_copy(archive, endpoint, folder.name)
    return {
        "images": images,
        "archive_mb": size_mb,
        "loop_images_per_s": images / loop_s,
        "ingest_images_per_s": images / ingest_s,
        "ingest_mb_per_s": size_mb / ingest_s,
        "rclone_copy_mb_per_s": size_mb / copy_s,
        "ingest_over_loop": loop_s / ingest_s,
        "ingest_over_loop_then_copy": (loop_s + copy_s) / ingest_s,
        "loop_cpu_s": loop_cpu_s,
        "ingest_cpu_s": ingest_cpu_s,
        "loop_cpu_over_ingest_cpu": loop_cpu_s / ingest_cpu_s,
        "server_cpu_s": server_cpu_s,
        "peak_memory_mb": peak_mb,
    }


def _round_of(checkout: Path, archive: Path, workers: int) -> dict[str, float]:
    """Measure the three once with the code of another checkout."""
    command = [checkout / ".venv/bin/python", "benchmarks/ingest.py", "--rounds", "1", "--archive", archive, "--workers", str(workers)]
    result = subprocess.run(command, cwd=checkout, check=True, capture_output=True, text=True)
    return dict(json.loads(result.stdout)["rounds"][0])


def _comparison(rounds: list[dict[str, float]], others: list[dict[str, float]]) -> dict[str, object]:
    """Return how many times as fast this version is as the other, by the clock and in processor time, and the other's rounds."""
    if not others:
        return {}
    by_clock = [ours["ingest_images_per_s"] / theirs["ingest_images_per_s"] for ours, theirs in zip(rounds, others, strict=True)]
    in_cpu_time = [theirs["ingest_cpu_s"] / ours["ingest_cpu_s"] for ours, theirs in zip(rounds, others, strict=True)]
    times = {"by_clock": by_clock, "in_processor_time": in_cpu_time}
    return {"times_as_fast": {name: round(statistics.median(values), 3) for name, values in times.items()}, "beside": others}


def _loop(archive: Path, workers: int) -> tuple[float, float]:
    """Return wall and processor seconds of reading, decoding and hashing every image, shared out over `workers` processes."""
    started_s, before_s = time.perf_counter(), _children_cpu_s()
    parts = [subprocess.Popen([sys.executable, "-c", _DECODE_AND_HASH, str(archive), str(part), str(workers)]) for part in range(workers)]
    statuses = [part.wait() for part in parts]
    if any(statuses):
        raise SystemExit("the loop failed")
    return time.perf_counter() - started_s, _children_cpu_s() - before_s


def _ingest(config: DataConfig, folder: Path, endpoint: str, workers: int) -> tuple[float, float, float]:
    """Return wall seconds, processor seconds and peak resident megabytes of an ingest into an empty place."""
    settings = Settings.from_environment(
        {
            "CELEBDIT_STORE": f"s3://{_BUCKET}/{folder.name}",
            "MLFLOW_TRACKING_URI": "http://127.0.0.1:9",
            "AWS_ENDPOINT_URL": endpoint,
            "CELEBDIT_RUN_ID": "benchmark",
            "CELEBDIT_WORK_DIR": str(folder),
        }
    )
    context = StepContext(settings=settings, events=Events("ingest", folder.with_suffix(".events")))
    usage = _Usage()
    with usage:
        started_s = time.perf_counter()
        run(config, context, workers=workers)
        wall_s = time.perf_counter() - started_s
    return wall_s, usage.cpu_s, usage.peak_mb


class _Usage:
    """Processor time and peak resident memory of this process and its decoding workers; what the watching itself takes is left out."""

    def __enter__(self) -> "_Usage":
        self.peak_mb = 0.0
        self._me = psutil.Process()
        self._watching_s = 0.0
        self._others = {child.pid for child in self._me.children()}
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._began_s = _own_cpu_s() + _children_cpu_s()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        self.cpu_s = _own_cpu_s() + _children_cpu_s() - self._began_s - self._watching_s

    def _watch(self) -> None:
        while not self._over.wait(_SAMPLE_EVERY_S):
            resident = self._me.memory_info().rss
            for child in self._me.children():
                with suppress(psutil.Error):
                    resident += child.memory_info().rss if child.pid not in self._others else 0
            self.peak_mb = max(self.peak_mb, resident / 1e6)
        self._watching_s = time.thread_time()


def _own_cpu_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def _children_cpu_s() -> float:
    """Return the processor time of all children that have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def _cpu_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def _rclone_copy(archive: Path, endpoint: str, name: str) -> float:
    remote = {"TYPE": "s3", "PROVIDER": "Rclone", "ENDPOINT": endpoint, "ENV_AUTH": "true", "USE_MULTIPART_ETAG": "false"}
    environment = {**os.environ, "RCLONE_CONFIG": "/dev/null", **{f"RCLONE_CONFIG_HERE_{key}": value for key, value in remote.items()}}
    started_s = time.perf_counter()
    subprocess.run([_rclone(), "copyto", str(archive), f"here:{_BUCKET}/{name}.zip"], env=environment, check=True)
    return time.perf_counter() - started_s


@contextmanager
def _s3_server(folder: Path) -> Iterator[tuple[str, psutil.Process]]:
    """Serve `folder` as S3, as the embedded server does, with credentials that live as long as the benchmark."""
    (folder / _BUCKET).mkdir(parents=True)
    os.environ.update({"AWS_ACCESS_KEY_ID": "benchmark", "AWS_SECRET_ACCESS_KEY": secrets.token_hex(16), "AWS_REGION": "us-east-1"})
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {**os.environ, "RCLONE_AUTH_KEY": f'"benchmark,{os.environ["AWS_SECRET_ACCESS_KEY"]}"', "RCLONE_CONFIG": "/dev/null"}
    command = [_rclone(), "serve", "s3", "--addr", f"127.0.0.1:{port}", "--etag-hash", "", "--dir-cache-time", "5s", str(folder)]
    with (folder.parent / "server.log").open("wb") as log:
        process = spawn(command, environment=environment, stdout=log, new_group=True)
        try:
            while socket.socket().connect_ex(("127.0.0.1", port)):
                time.sleep(0.05)
            yield f"http://127.0.0.1:{port}", psutil.Process(process.pid)
        finally:
            stop(process, grace_s=5.0)


def _rclone() -> str:
    beside = Path(sysconfig.get_path("scripts")) / "rclone"
    return str(beside) if beside.exists() else shutil.which("rclone") or "rclone"


if __name__ == "__main__":
    main()
