"""Wire format between this process and those that parse untrusted bytes: a line of JSON with the size of each blob, then the blobs.

Promises: nothing is unpickled; a stream that ends inside a frame is an error, one that ends between frames is the end.
"""

import json
from collections.abc import Iterator, Sequence
from typing import IO

from model.canonical import JsonObject


def write_frame(stream: IO[bytes], head: JsonObject, blobs: Sequence[bytes]) -> None:
    """Write one frame; `head` is what the JSON holds beside the blobs' sizes."""
    line = json.dumps({**head, "sizes": [len(blob) for blob in blobs]}, separators=(",", ":"))
    stream.write(b"".join((line.encode(), b"\n", *blobs)))
    stream.flush()


def read_head(stream: IO[bytes]) -> JsonObject | None:
    """Read a frame up to its blobs, or None at the end of the stream."""
    line = stream.readline()
    return json.loads(line) if line.endswith(b"\n") else None


def read_blobs(stream: IO[bytes], head: JsonObject) -> list[bytes]:
    """Read the blobs of the frame that `head` begins.

    Raises:
        EOFError: if the stream ends before.
    """
    return list(_blobs(stream, head["sizes"]))


def _blobs(stream: IO[bytes], sizes: list[int]) -> Iterator[bytes]:
    for size in sizes:
        blob = stream.read(size)
        if len(blob) != size:
            raise EOFError("the stream ended inside a frame")
        yield blob
