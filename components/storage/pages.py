"""Listings of a store, page by page, which end.

Promises: every page is passed on as it came. Pages that bring nothing new, whatever their continuation tokens, are followed for a while,
because a store may return empty pages where much was deleted, and then refused: without a bound such a listing has no end.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from botocore.exceptions import PaginationError

from components.errors import DataRefused
from components.storage.uri import StoreUri

_PAGES_WITHOUT_PROGRESS = 100


class ListingEndless(DataRefused):
    """The pages of a listing repeat themselves, or bring nothing, and each announces another one."""


def pages_with_an_end(pages: Iterable[Mapping[str, Any]], entries: str, prefix: StoreUri) -> Iterator[Mapping[str, Any]]:
    """Yield the `pages` of a listing of `prefix`, whose objects, uploads or folders are in the field `entries`.

    Raises:
        ListingEndless: if many pages in a row have no entry that was not in an earlier one, or a token repeats itself.
    """
    seen: set[tuple[object, object]] = set()
    idle = 0
    try:
        for page in pages:
            yield page
            new = {(item.get("Key") or item.get("Prefix"), item.get("UploadId")) for item in page.get(entries, [])} - seen
            seen |= new
            idle = 0 if new else idle + 1
            if idle >= _PAGES_WITHOUT_PROGRESS:
                raise _endless_error(prefix, f"{idle} pages in a row listed nothing new")
    except PaginationError as error:  # boto3 notices a token that is repeated at once, and nothing else
        raise _endless_error(prefix, "a page leads to itself") from error


def _endless_error(prefix: StoreUri, reason: str) -> ListingEndless:
    return ListingEndless(
        f"the listing of {prefix} has no end: {reason}",
        hint="check AWS_ENDPOINT_URL and what lies before the server; if it is the store itself, update or replace it",
    )
