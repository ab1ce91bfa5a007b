"""A byte range of a local file, as a file object.

Promises: threads can read different parts of the same open file concurrently; only the requested bytes are in memory; a file that shrinks
meanwhile is an error, never a shorter part.
"""

import errno
import io
import os
from collections.abc import Iterator
from typing import IO

_CHUNK_BYTES = 2**20


class FilePart(io.RawIOBase):
    """The `size_bytes` bytes of `file` from `begins_at` on; the file must stay open while the part is read."""

    def __init__(self, file: IO[bytes], begins_at: int, size_bytes: int) -> None:
        super().__init__()
        self._file = file
        self._begins_at = begins_at
        self._size_bytes = size_bytes
        self._at = 0

    def __len__(self) -> int:
        return self._size_bytes

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size_bytes}[whence]
        return self._at

    def read(self, size: int = -1, /) -> bytes:
        left_bytes = max(0, self._size_bytes - self._at)
        data = self._read_exactly(self._at, left_bytes if size < 0 else min(size, left_bytes))
        self._at += len(data)
        return data

    def chunks(self) -> Iterator[bytes]:
        """Yield the part from its beginning, whatever its position; the position does not change."""
        for at in range(0, self._size_bytes, _CHUNK_BYTES):
            yield self._read_exactly(at, min(_CHUNK_BYTES, self._size_bytes - at))

    def _read_exactly(self, at: int, size_bytes: int) -> bytes:
        data = os.pread(self._file.fileno(), size_bytes, self._begins_at + at)
        if len(data) != size_bytes:
            raise OSError(errno.EIO, "it became shorter while it was read", self._file.name)
        return data
