"""Heads of objects, and whether a refused key is missing.

Two answers to HEAD and GET do not say what they mean. The answer to HEAD has no body, so nothing tells an expired token from a wrong
region. And a store answers 403 for a key that is missing to whoever may not list in the way that it checks: AWS without s3:ListBucket or
with a condition on it, Ceph with one. Promises: a key counts as missing only if a listing does not have it.
"""

from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypeVar

from botocore.exceptions import BotoCoreError, ClientError

from components.storage.answers import DENIED, MISSING
from components.storage.faults import answer_to, code, status
from components.storage.pages import pages_with_an_end
from components.storage.uri import StoreUri

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client
    from mypy_boto3_s3.type_defs import GetObjectOutputTypeDef, HeadObjectOutputTypeDef

T = TypeVar("T")


def head(client: "S3Client", uri: StoreUri) -> "HeadObjectOutputTypeDef":
    """Return the head of an object; a refusal has the code that the store gives for it.

    Raises:
        ClientError: if the store refuses. Its code is the one of `NoSuchKey` if the key is missing.
    """

    def request() -> "HeadObjectOutputTypeDef":
        try:
            return client.head_object(Bucket=uri.bucket, Key=uri.key)
        except ClientError as error:
            if code(error) != str(status(error)) or status(error) >= 500 or answer_to(error) is MISSING:
                raise
            raise _explain_refusal(client, uri, error) from error

    return with_missing_keys(client, uri, request)


def get_object(client: "S3Client", uri: StoreUri, **named: Any) -> "GetObjectOutputTypeDef":
    """Return the response to GET of an object, with boto3's arguments `named`.

    Raises:
        ClientError: if the store refuses. Its code is the one of `NoSuchKey` if the key is missing.
    """
    return with_missing_keys(client, uri, lambda: client.get_object(Bucket=uri.bucket, Key=uri.key, **named))


def delete_object(client: "S3Client", uri: StoreUri) -> None:
    """Delete an object; a missing one is no error, although Google Cloud Storage answers 404 for it."""
    try:
        client.delete_object(Bucket=uri.bucket, Key=uri.key)
    except ClientError as error:
        if code(error) not in MISSING.codes:
            raise


def with_missing_keys(client: "S3Client", uri: StoreUri, request: Callable[[], T]) -> T:
    """Return the result of `request`, which reads an object; a refusal for a key that no listing has becomes `NoSuchKey`."""
    try:
        return request()
    except ClientError as error:
        if answer_to(error) is DENIED and status(error) == 403 and is_unlisted(client, uri):
            missing = {"Code": "NoSuchKey", "Message": "not in the listing; the store answered 403"}
            raise ClientError({**error.response, "Error": missing}, error.operation_name) from error  # type: ignore[typeddict-item]
        raise


def is_unlisted(client: "S3Client", uri: StoreUri) -> bool:
    """Return whether the bucket can be listed and has no such key; where only folders may be listed, the key's folder is."""
    folder = f"{uri.key.rpartition('/')[0]}/".lstrip("/")
    listings: tuple[Callable[[], Iterable[Mapping[str, Any]]], ...] = (
        lambda: [client.list_objects_v2(Bucket=uri.bucket, Prefix=uri.key, MaxKeys=1)],
        lambda: pages_with_an_end(client.get_paginator("list_objects_v2").paginate(Bucket=uri.bucket, Prefix=folder), "Contents", uri),
    )
    for listing in listings:
        with suppress(Exception):  # the refusal itself matters more
            return not any(item.get("Key") == uri.key for page in listing() for item in page.get("Contents", []))
    return False


def _explain_refusal(client: "S3Client", uri: StoreUri, error: ClientError) -> ClientError:
    """Return the refusal of GET for the same object, which has a body, or `error` if GET is not refused."""
    try:
        client.get_object(Bucket=uri.bucket, Key=uri.key, Range="bytes=0-0")["Body"].close()
    except ClientError as explained:
        return explained
    except (BotoCoreError, OSError):
        pass
    return error
