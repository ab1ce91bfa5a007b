"""Uploads in parts that were begun and neither completed nor aborted: their parts are stored and paid for, and no listing shows them.

Does not decide which of them are abandoned; see `components/stores/abandoned_uploads.py`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from botocore.exceptions import BotoCoreError, ClientError
from botocore.parsers import ResponseParserError

from components.storage.answers import LOST_UPLOAD, MISSING
from components.storage.faults import answer_to
from components.storage.hashing import content_md5
from components.storage.pages import ListingEndless, pages_with_an_end
from components.storage.skew import server_time
from components.storage.store import ObjectStore
from components.storage.uri import StoreUri

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client


@dataclass(frozen=True)
class UnfinishedUpload:
    """An upload in parts that has begun."""

    uri: StoreUri
    id: str
    age: timedelta | None = None
    """By the clock of the store, None if it does not say."""

    def put_part(self, client: "S3Client", number: int, data: bytes) -> None:
        """Send one part, counted from 1."""
        md5 = content_md5([data])  # as for every part (`upload.py`): a bucket with Object Lock refuses those without
        client.upload_part(Bucket=self.uri.bucket, Key=self.uri.key, UploadId=self.id, PartNumber=number, Body=data, ContentMD5=md5)

    def abort(self, store: ObjectStore) -> None:
        """Remove its parts; one that is gone already is no error."""

        def abort() -> None:
            try:
                store.client.abort_multipart_upload(Bucket=self.uri.bucket, Key=self.uri.key, UploadId=self.id)
            except ClientError as error:
                if answer_to(error) not in (LOST_UPLOAD, MISSING):
                    raise

        store.call("abort an upload of", self.uri, abort)


def begin_upload(store: ObjectStore, uri: StoreUri) -> UnfinishedUpload:
    """Begin an upload in parts to `uri`."""
    response = store.call("put", uri, lambda: store.client.create_multipart_upload(Bucket=uri.bucket, Key=uri.key))
    return UnfinishedUpload(uri, response["UploadId"])


def unfinished_uploads(store: ObjectStore, prefix: StoreUri) -> list[UnfinishedUpload] | None:
    """Return the uploads whose keys are `prefix` or below it, or None if the store does not list them. Not retried."""
    try:
        listing = store.client.get_paginator("list_multipart_uploads").paginate(Bucket=prefix.bucket, Prefix=prefix.key)
        pages = list(pages_with_an_end(listing, "Uploads", prefix))
    except (ListingEndless, ClientError, BotoCoreError, ResponseParserError, OSError):
        return None
    return [_upload(prefix.bucket, item, page) for page in pages for item in page.get("Uploads", []) if _is_below(item, prefix)]


def _is_below(item: Mapping[str, Any], prefix: StoreUri) -> bool:
    return "UploadId" in item and f"{item.get('Key', '')}/".startswith(f"{prefix.key}/")


def _upload(bucket: str, item: Mapping[str, Any], page: Mapping[str, Any]) -> UnfinishedUpload:
    began, at = item.get("Initiated"), server_time(page)
    return UnfinishedUpload(StoreUri(bucket, item["Key"]), item["UploadId"], None if began is None or at is None else at - began)
