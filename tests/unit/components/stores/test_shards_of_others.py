"""A shard that a writer of the bucket made: read to its end or refused, never read for ever and never beyond its bytes."""

import hashlib
import tarfile
from pathlib import Path

import pytest

from components.errors import DataRefused
from components.stores.dataset_content import read_shard

IMAGE = b"bytes of an image"
KEY = hashlib.sha256(IMAGE).hexdigest()[:20]


def header(name: str, size_bytes: int, *, kind: bytes = tarfile.REGTYPE) -> bytes:
    entry = tarfile.TarInfo(name)
    entry.type = kind
    raw = bytearray(entry.tobuf(tarfile.USTAR_FORMAT))
    raw[124:136] = (256**12 + size_bytes).to_bytes(12, "big") if size_bytes < 0 else b"%011o\0" % size_bytes
    raw[148:156] = b"%06o\0 " % sum(raw[:148] + b" " * 8 + raw[156:])
    return bytes(raw)


def padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % tarfile.BLOCKSIZE)


PAIR = header(f"{KEY}.jpg", len(IMAGE)) + padded(IMAGE) + header(f"{KEY}.json", 17) + padded(b'{"split":"train"}')
END = bytes(2 * tarfile.BLOCKSIZE)


def test_a_shard_is_read_to_its_end(tmp_path: Path) -> None:
    (tmp_path / "shard.tar").write_bytes(PAIR + END)
    (member,) = read_shard(tmp_path / "shard.tar")
    assert (member.key, member.split, member.offset, member.size_bytes) == (KEY, "train", 512, len(IMAGE))


@pytest.mark.timeout(30)
@pytest.mark.parametrize(
    "content",
    [
        pytest.param(header("a.jpg", -512) + END, id="an entry that leads back to itself"),
        pytest.param(PAIR + header("a.jpg", -512 - len(PAIR)) + END, id="an entry that leads back to the first"),
        pytest.param(header("a.jpg", -1) + END, id="an entry of minus one byte"),
        pytest.param(PAIR + header("a.json", -2048) + END, id="facts of a negative size"),
        pytest.param(header("a.jpg", 10**9) + END, id="an entry that ends beyond the shard"),
        pytest.param(header("/etc/passwd", 0, kind=tarfile.SYMTYPE) + END, id="a link"),
        pytest.param(header("a.jpg", 512, kind=tarfile.XHDTYPE) + END, id="an extended header"),
        pytest.param(header("a.jpg", 512, kind=tarfile.GNUTYPE_SPARSE) + END, id="a sparse file"),
        pytest.param(PAIR + header(f"{KEY}.jpg", len(IMAGE)) + padded(IMAGE) + END, id="an image without facts"),
        pytest.param(
            header("b.jpg", len(IMAGE)) + padded(IMAGE) + header("b.json", 17) + padded(b'{"split":"train"}') + END, id="a wrong name"
        ),
        pytest.param(header(f"{KEY}.json", 17) + padded(b'{"split":"train"}') + END, id="facts without an image"),
        pytest.param(PAIR, id="cut off at the end of an entry"),
        pytest.param(PAIR[:1000], id="cut off within an entry"),
        pytest.param(b"", id="empty"),
    ],
)
def test_what_is_not_a_shard_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "shard.tar").write_bytes(content)
    with pytest.raises(DataRefused, match=r"shard\.tar"):
        list(read_shard(tmp_path / "shard.tar"))
