"""The records of a sweep in object storage: one object per record, written once.

Promises: a record is complete or missing; one process writes at a time, and a second one is noticed at its first record, here or
there. Keys are `<number>-<attempt>.json`, so that two writers never meet in one.
"""

import uuid

from pydantic import ValidationError

from components.errors import DataRefused, TemporaryFailure
from components.storage import ObjectStore, StoreUri
from pipeline.sweeps.records import RECORD, Record

_DIGITS = 6


class Journal:
    """The records of one sweep."""

    def __init__(self, store: ObjectStore, folder: StoreUri) -> None:
        self._store = store
        self._folder = folder
        self._attempt = uuid.uuid4().hex[:8]
        self._known: set[str] = set()
        self._next = 0

    def read(self) -> list[Record]:
        """Return all records, in the order of their numbers.

        Raises:
            DataRefused: if one is damaged; names it.
        """
        records = []
        for item in self._store.list(self._folder):
            try:
                records.append(RECORD.validate_json(self._store.get_bytes(item.uri)))
            except ValidationError as error:
                raise DataRefused(
                    f"{item.uri} is not a record of a sweep", hint="delete it and run this again: what it said is made or found again"
                ) from error
            self._known.add(item.uri.name)
        self._next = 1 + max((int(name.partition("-")[0]) for name in self._known if name[:_DIGITS].isdigit()), default=-1)
        return records

    def append(self, record: Record) -> None:
        """Store a record.

        Raises:
            TemporaryFailure: if another process has written to this sweep since it was read.
        """
        name = f"{self._next:0{_DIGITS}}-{self._attempt}.json"
        self._store.put_bytes(self._folder / name, record.model_dump_json().encode())
        self._known.add(name)
        self._next += 1
        others = {item.uri.name for item in self._store.list(self._folder)} - self._known
        if others:
            raise TemporaryFailure(
                f"another process works on this sweep: it wrote {min(others)}", hint="let one of them end, then run this again to go on"
            )
