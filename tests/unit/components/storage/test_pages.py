"""Listings whose pages have no end: whatever the continuation tokens, a listing ends with its objects or with an error that says why."""

import itertools
from collections.abc import Callable, Iterator

import pytest
from celebdit_testing.http_server import Handler, serving

from components.storage import ObjectStore, StoreUri, connect
from components.storage import pages as storage_pages
from components.storage.pages import ListingEndless
from components.storage.unfinished_uploads import unfinished_uploads

LIMIT = 8
"""Of pages without progress, for these tests."""
PREFIX = StoreUri("bucket", "folder")
NAMESPACE = 'xmlns="http://s3.amazonaws.com/doc/2006-03-01/"'


class Pages(Handler):
    """A store whose every page is `keys(number)`, a token, and whether there is another one."""

    keys: Callable[[int], list[str]] = staticmethod(lambda number: [])
    token: Callable[[int], str] = staticmethod(lambda number: f"token-{number}")
    last = 10**9
    asked = 0

    def do_GET(self) -> None:  # noqa: N802
        number, kind = Pages.asked, type(self)
        Pages.asked += 1
        is_truncated = "true" if number < kind.last else "false"
        if "uploads" in self.query:
            uploads = "".join(f"<Upload><Key>{key}</Key><UploadId>1</UploadId></Upload>" for key in kind.keys(number))
            markers = f"<NextKeyMarker>{kind.token(number)}</NextKeyMarker><NextUploadIdMarker>{kind.token(number)}</NextUploadIdMarker>"
            self._answer("ListMultipartUploadsResult", f"<IsTruncated>{is_truncated}</IsTruncated>{markers}{uploads}")
            return
        objects = "".join(f"<Contents><Key>{key}</Key><Size>1</Size></Contents>" for key in kind.keys(number))
        token = f"<NextContinuationToken>{kind.token(number)}</NextContinuationToken>" if number < kind.last else ""
        self._answer("ListBucketResult", f"<IsTruncated>{is_truncated}</IsTruncated>{token}{objects}")

    def _answer(self, name: str, content: str) -> None:
        self.answer(200, f'<?xml version="1.0"?><{name} {NAMESPACE}>{content}</{name}>'.encode(), "application/xml")


@pytest.fixture
def paged(s3_credentials: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., ObjectStore]]:
    """Return a client of a store with these pages, which would wait for long."""
    monkeypatch.setattr(Pages, "asked", 0)
    with serving(Pages) as address:
        monkeypatch.setattr(storage_pages, "_PAGES_WITHOUT_PROGRESS", LIMIT)

        def make(**pages: object) -> ObjectStore:
            for name, value in pages.items():
                monkeypatch.setattr(Pages, name, staticmethod(value) if callable(value) else value)
            return connect(address, deadline_s=60.0)

        yield make


ENDLESS = {
    "nothing, with new tokens": {},
    "the same key, with new tokens": {"keys": lambda number: ["folder/a"]},
    "keys in a circle, with new tokens": {"keys": lambda number: [f"folder/{number % 4}"]},
    "new keys at first, with new tokens": {"keys": lambda number: [f"folder/{min(number, 6)}"]},
    "the same token": {"keys": lambda number: [f"folder/{number}"], "token": lambda number: "same"},
}


@pytest.mark.parametrize("pages", ENDLESS)
def test_a_listing_without_an_end_is_an_error_of_the_store(pages: str, paged: Callable[..., ObjectStore]) -> None:
    store = paged(**ENDLESS[pages])
    with pytest.raises(ListingEndless, match="the listing of s3://bucket/folder has no end") as endless:
        store.list(PREFIX)
    assert (endless.value.exit_code, "update or replace it" in str(endless.value.hint)) == (3, True)
    assert 1 < Pages.asked < 3 * LIMIT


def test_unfinished_uploads_are_looked_for_in_pages_that_end(paged: Callable[..., ObjectStore]) -> None:
    assert unfinished_uploads(paged(keys=lambda number: ["folder/b"]), PREFIX) is None
    assert 1 < Pages.asked < 3 * LIMIT


@pytest.mark.parametrize("empty", [0, 1, LIMIT - 1])
def test_empty_pages_between_others_are_followed_to_the_end(empty: int, paged: Callable[..., ObjectStore]) -> None:
    numbers = itertools.count()
    last = 2 * (empty + 1)
    store = paged(keys=lambda number: [f"folder/{next(numbers)}"] if number % (empty + 1) == 0 else [], last=last)
    assert len(store.list(PREFIX)) == 3
    assert Pages.asked == last + 1
