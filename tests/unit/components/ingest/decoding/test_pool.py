"""Workers that decode: in order, one verdict each, and none of them can take the machine down."""

import contextlib
import os
import signal
import threading
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from celebdit_testing.corpus import IMAGES, LIMITS, PX, encoded, face, many_scans
from celebdit_testing.processes import processes_below
from PIL import Image

from components.errors import TemporaryFailure
from components.ingest.candidates import Candidate
from components.ingest.decoding.memory_budget import MEMORY_BYTES, MemoryBudget
from components.ingest.decoding.pool import DecoderPool
from components.ingest.limits import Budget, Limits
from components.ingest.sources.synthetic import encode_face
from components.ingest.sources.zips import ZipSource
from components.ingest.verdicts import Accepted, Extent, Rejected, Verdict

LIMITS_32 = Limits(**LIMITS, max_ratio=200)  # type: ignore[arg-type]


def faces(count: int) -> Iterator[Candidate]:
    return (Candidate(f"{index}.jpg", encode_face(0, index, PX)) for index in range(count))


def test_verdicts_come_in_order_and_do_not_depend_on_the_number_of_workers() -> None:
    results = []
    for workers in (1, 3):
        with DecoderPool(LIMITS_32, workers=workers) as pool:
            judged = list(pool.judge(faces(100)))
        assert [candidate.name for candidate, _ in judged] == [f"{index}.jpg" for index in range(100)]
        results.append([verdict for _, verdict in judged])
    assert results[0] == results[1]
    assert all(isinstance(verdict, Accepted) and verdict.data == encode_face(0, n, PX) for n, verdict in enumerate(results[0]))


def test_the_corpus_has_the_same_verdicts_through_the_workers() -> None:
    data_by_name = {name: (make(), verdict) for name, (make, verdict) in IMAGES.items() if verdict not in ("duplicate", "ignored")}
    with DecoderPool(LIMITS_32, workers=2) as pool:
        judged = list(pool.judge(Candidate(name, data) for name, (data, _) in data_by_name.items()))
    for candidate, verdict in judged:
        label = "+".join(verdict.rules) if isinstance(verdict, Accepted) else verdict.code
        assert label == data_by_name[candidate.name][1], candidate.name


def test_what_the_source_refused_is_only_passed_on() -> None:
    refused = Rejected("link", "a symbolic link")
    with DecoderPool(LIMITS_32, workers=1) as pool:
        assert list(pool.judge([Candidate("a", b"", refused)])) == [(Candidate("a", b"", refused), refused)]


def libraries(pool: DecoderPool) -> dict[int, set[str]]:
    """Return which of some libraries each worker of `pool` has loaded, by process."""
    libraries = {}
    for worker in list(pool._alive):
        maps = Path(f"/proc/{worker.process.pid}/maps").read_text()
        libraries[worker.process.pid] = {name for name in ("simplejpeg", "_avif", "_pillow_heif", "pillow_jxl") if name in maps}
    return libraries


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="the system does not show what a process has loaded")
@pytest.mark.parametrize("kind", ["AVIF", "HEIF", "JXL"])
def test_a_worker_loads_the_libraries_of_rarer_formats_when_such_a_file_comes(kind: str) -> None:
    rare = Candidate("rare.jpg", encoded(face(1, 2 * PX), kind))
    with DecoderPool(LIMITS_32, workers=1) as pool:
        ((_, common),) = pool.judge(faces(1))
        first = libraries(pool)
        judged = [verdict for _, verdict in pool.judge([*faces(2), rare, *faces(1)])]
        second = libraries(pool)
        again = [verdict for _, verdict in pool.judge([rare, *faces(1)])]
        assert libraries(pool) == second, "it was replaced once"
        assert pool.thumbnail(encode_face(0, 0, PX)).startswith(b"\xff\xd8")
    assert (list(first.values()), list(second.values())) == ([{"simplejpeg"}], [{"simplejpeg", "_avif", "_pillow_heif", "pillow_jxl"}])
    assert set(first).isdisjoint(second)
    assert [verdict.source_format for verdict in judged if isinstance(verdict, Accepted)] == ["jpeg", "jpeg", kind.lower(), "jpeg"]
    assert (again[0], again[1]) == (judged[2], common)


def test_a_worker_that_crashes_costs_one_verdict_and_is_replaced() -> None:
    """A worker crashes each time it is busy with the candidate in the middle, which takes half a minute of processor time."""
    limits = Limits(image_px=PX, max_image_bytes=10**9, max_image_pixels=10**9, max_ratio=10**6, max_image_s=10**6)
    dead: set[int] = set()

    def crash_who_is_busy(pool: DecoderPool) -> None:
        while len(dead) < 2:  # in its batch, and alone
            for worker in list(pool._alive):
                with contextlib.suppress(psutil.NoSuchProcess):
                    if psutil.Process(worker.process.pid).cpu_times().user > 1.5:
                        os.kill(worker.process.pid, signal.SIGSEGV)
                        dead.add(worker.process.pid)
            time.sleep(0.05)

    with DecoderPool(limits, workers=1) as pool:
        killer = threading.Thread(target=crash_who_is_busy, args=(pool,), daemon=True)
        killer.start()
        judged = list(pool.judge([*faces(3), Candidate("slow", many_scans(1500)), *faces(3)]))
        killer.join(timeout=30)
    assert [isinstance(verdict, Accepted) for _, verdict in judged] == [True, True, True, False, True, True, True]
    lost = judged[3][1]
    assert isinstance(lost, Rejected)
    assert (lost.code, len(dead)) == ("decoder_died", 2)
    assert "status -11" in lost.detail


@contextlib.contextmanager
def ending_workers(pool: DecoderPool, number: int, *, at_most: int) -> Iterator[set[int]]:
    """Send the signal `number` to so many workers of `pool` as they appear, inside the block; yields the processes that got it."""
    ended: set[int] = set()
    over = threading.Event()

    def end_each() -> None:
        while not over.wait(0.005) and len(ended) < at_most:
            for worker in list(pool._alive):
                if worker.process.pid not in ended:
                    ended.add(worker.process.pid)
                    worker.process.send_signal(number)

    thread = threading.Thread(target=end_each)
    thread.start()
    try:
        yield ended
    finally:
        over.set()
        thread.join()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_workers_that_the_system_kills_again_and_again_are_a_temporary_failure(number: int) -> None:
    words = rf"0\.jpg: the decoding process was killed by {signal.Signals(number).name}"
    with (
        DecoderPool(LIMITS_32, workers=1) as pool,
        ending_workers(pool, number, at_most=100) as ended,
        pytest.raises(TemporaryFailure, match=words) as failed,
    ):
        list(pool.judge(faces(1)))
    assert len(ended) >= 2
    assert "memory" in str(failed.value.hint)


def test_a_worker_that_the_system_kills_once_costs_nothing() -> None:
    with DecoderPool(LIMITS_32, workers=1) as pool, ending_workers(pool, signal.SIGKILL, at_most=1) as ended:
        judged = list(pool.judge(faces(3)))
    assert len(ended) == 1
    assert [isinstance(verdict, Accepted) for _, verdict in judged] == [True] * 3


def test_a_candidate_that_takes_too_long_is_rejected() -> None:
    slow = encoded(Image.new("RGB", (6000, 6000)), "PNG")
    limits = Limits(image_px=PX, max_image_bytes=10**9, max_image_pixels=10**9, max_ratio=10**6)
    with DecoderPool(limits, workers=1, timeout_s=0.05) as pool:
        pool._patience_s = 5.0
        list(pool.judge(faces(1)))  # the worker is up
        pool._patience_s = 0.05
        ((_, verdict),) = pool.judge([Candidate("slow", slow)])
    assert isinstance(verdict, Rejected)
    assert verdict.code == "too_slow"


def watched(pool: DecoderPool, peak: list[int], over: threading.Event) -> None:
    """Keep the most memory that the workers of `pool` were seen to hold together."""
    while not over.wait(0.01):
        with contextlib.suppress(psutil.NoSuchProcess, RuntimeError):
            peak[0] = max(peak[0], sum(psutil.Process(worker.process.pid).memory_info().rss for worker in list(pool._alive)))


def test_a_bomb_within_the_pixel_limit_meets_the_memory_limit() -> None:
    bomb = encoded(Image.new("RGB", (6000, 6000)), "PNG", compress_level=1)  # 144 MB of pixels in half a megabyte
    limits = Limits(image_px=PX, max_image_bytes=10**9, max_image_pixels=10**9, max_ratio=10**6)
    peak, over = [0], threading.Event()
    with DecoderPool(limits, workers=2, memory_bytes=100 * 2**20) as pool:
        watcher = threading.Thread(target=watched, args=(pool, peak, over), daemon=True)
        watcher.start()
        judged = [verdict for _, verdict in pool.judge([Candidate("bomb", bomb)] * 4 + list(faces(2)))]
        over.set()
        watcher.join()
    assert [verdict.code for verdict in judged[:4] if isinstance(verdict, Rejected)] == ["out_of_memory"] * 4
    assert all(isinstance(verdict, Accepted) for verdict in judged[4:])
    assert peak[0] < 400e6
    assert 2 * (MEMORY_BYTES + 100e6) < 10**9  # what two workers with the default limit may come to


@pytest.mark.fault
@pytest.mark.slow
def test_many_workers_on_large_images_hold_little_more_than_one_may() -> None:
    """Each image takes 120 MB to decode; six at once would take 1 GB with what a worker takes anyway."""
    large = encoded(Image.new("RGB", (5500, 5500), (9, 99, 199)), "PNG", compress_level=1)
    limits = Limits(image_px=PX, max_image_bytes=10**9, max_image_pixels=10**9, max_ratio=10**6)
    candidates = [*faces(20), *[Candidate(f"large-{n}", large) for n in range(6)], *faces(20), Candidate("bad", large[:5000])]
    results = []
    for workers in (1, 6):
        peak, over = [0], threading.Event()
        with DecoderPool(limits, workers=workers) as pool:
            watcher = threading.Thread(target=watched, args=(pool, peak, over), daemon=True)
            watcher.start()
            results.append([verdict for _, verdict in pool.judge(candidates)])
            over.set()
            watcher.join()
    assert results[0] == results[1]
    assert [isinstance(verdict, Accepted) for verdict in results[1]] == [True] * 46 + [False]
    assert peak[0] < MEMORY_BYTES + 6 * 60e6


def test_what_little_memory_refuses_is_judged_again_with_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """The verdict is the one that the largest allowance gives, whatever the smaller ones are."""
    sides = (PX, 1500, 2500, 4000)
    candidates = [Candidate(f"{side}.png", encoded(Image.new("RGB", (side, side)), "PNG")) for side in sides]
    limits = Limits(image_px=PX, max_image_bytes=10**9, max_image_pixels=10**9, max_ratio=10**6)
    results = []
    for smaller in ((16 * 2**20, 96 * 2**20), (2**20,), ()):
        monkeypatch.setattr("components.ingest.decoding.memory_budget._LOWER_LEVELS", smaller)
        with DecoderPool(limits, workers=2, memory_bytes=100 * 2**20) as pool:
            results.append([verdict for _, verdict in pool.judge(candidates)])
    assert results[0] == results[1] == results[2]
    assert all(isinstance(verdict, Accepted) for verdict in results[0])


def test_large_reservations_share_one_budget() -> None:
    budget = MemoryBudget(300 * 2**20)
    small, middle = 16 * 2**20, 96 * 2**20
    assert [budget.initial_level(size) for size in (0, 10**6, 10**7, 10**8)] == [small, small, middle, budget.max_bytes]
    assert [budget.next_level(step) for step in (small, middle, budget.max_bytes)] == [
        middle,
        budget.max_bytes,
        budget.max_bytes,
    ]
    got: list[str] = []

    def take(name: str, size_bytes: int) -> None:
        with budget.reserve(size_bytes):
            got.append(name)

    with budget.reserve(middle), budget.reserve(middle), budget.reserve(middle):
        waiting = [
            threading.Thread(target=take, args=("most", budget.max_bytes)),
            threading.Thread(target=take, args=("middle", middle)),
        ]
        for thread in waiting:
            thread.start()
        with budget.reserve(small):
            time.sleep(0.1)
        assert got == []
    for thread in waiting:
        thread.join(timeout=10)
    assert sorted(got) == ["middle", "most"]


def test_candidates_are_read_from_the_archive_by_the_workers(tmp_path: Path) -> None:
    """Candidates read by the workers and candidates with bytes have the same verdicts; stored bytes come back as an `Extent`."""
    data_by_name = {name: make() for name, (make, verdict) in IMAGES.items() if verdict not in ("duplicate", "ignored")}
    expected: dict[str, Verdict] = {}
    with DecoderPool(LIMITS_32, workers=1) as pool:
        expected = {candidate.name: verdict for candidate, verdict in pool.judge(Candidate(*item) for item in data_by_name.items())}
    budget = Budget(LIMITS_32.max_image_bytes, 2**32, 10**6, 10**9)
    for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        path = tmp_path / f"{method}.zip"
        with zipfile.ZipFile(path, "w", method) as archive:
            for name, data in data_by_name.items():
                archive.writestr(name, data)
        with DecoderPool(LIMITS_32, workers=2) as pool:
            pool.start(path)
            judged = {candidate.name: verdict for candidate, verdict in pool.judge(ZipSource(path, "a.zip").candidates(budget))}
        raw, extents = path.read_bytes(), 0
        for name, verdict in judged.items():
            if isinstance(verdict, Accepted) and isinstance(verdict.data, Extent):
                at, size_bytes = verdict.data
                judged[name] = verdict._replace(data=raw[at : at + size_bytes])
                extents += 1
        assert judged == expected
        assert (extents > 0) is (method == zipfile.ZIP_STORED)


def test_an_entry_that_unpacks_to_too_much_for_a_worker_costs_one_verdict(tmp_path: Path) -> None:
    path = tmp_path / "bomb.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_LZMA) as archive:
        archive.writestr("0.jpg", encode_face(0, 0, PX))
        archive.writestr("bomb.bmp", bytes(200 * 2**20))
        archive.writestr("1.jpg", encode_face(0, 1, PX))
    limits = Limits(image_px=PX, max_image_bytes=10**9, max_image_pixels=10**9, max_ratio=10**9)
    with DecoderPool(limits, workers=1, memory_bytes=100 * 2**20) as pool:
        pool.start(path)
        judged = [verdict for _, verdict in pool.judge(ZipSource(path, "a.zip").candidates(Budget(10**9, 2**32, 10**6, 10**9)))]
    first, bomb, last = judged
    assert isinstance(first, Accepted)
    assert isinstance(last, Accepted)
    assert isinstance(bomb, Rejected)
    assert bomb.code == "out_of_memory"


def test_the_workers_hold_no_secret_and_end_with_the_pool(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "canary-in-a-worker")
    with DecoderPool(LIMITS_32, workers=2) as pool:
        pids = [worker.process.pid for worker in pool._alive]
        list(pool.judge(faces(2)))
        for pid in pids:
            assert b"canary-in-a-worker" not in Path(f"/proc/{pid}/environ").read_bytes()
    assert not any(psutil.pid_exists(pid) for pid in pids)


def test_a_pool_that_is_left_in_the_middle_ends_its_workers_at_once() -> None:
    slow = encoded(Image.new("RGB", (6000, 6000)), "PNG")
    limits = Limits(image_px=PX, max_image_bytes=10**9, max_image_pixels=10**9, max_ratio=10**6)
    with pytest.raises(KeyboardInterrupt), DecoderPool(limits, workers=2) as pool:
        for number, _ in enumerate(pool.judge([*faces(40), *[Candidate("slow", slow)] * 40])):
            if number == 20:
                pids = [worker.process.pid for worker in pool._alive]
                raise KeyboardInterrupt
    pool._threads.shutdown(wait=True)
    assert len(pids) == 2
    assert not any(psutil.pid_exists(pid) for pid in pids)
    assert not processes_below(os.getpid(), running="components.ingest.decoding.decoder")
