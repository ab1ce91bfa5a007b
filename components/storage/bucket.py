"""What the owner of a bucket has set for it: whether it keeps versions, and whether a lifecycle rule removes incomplete uploads.

Promises: a bucket that does not say, because the right is missing or the server knows no such thing, is no error.
"""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError
from botocore.parsers import ResponseParserError

from components.storage.faults import code
from components.storage.store import ObjectStore
from components.storage.uri import StoreUri

_NO_RULES = "NoSuchLifecycleConfiguration"


@dataclass(frozen=True)
class BucketRules:
    """What applies to the objects below a prefix; None stands for what the bucket does not say."""

    is_versioned: bool | None
    uploads_removed_after_days: int | None
    """0 if no rule removes incomplete uploads."""

    def describe(self) -> str:
        """Return what is set, and what it costs."""
        return f"{_versions_text(self.is_versioned)}; {_uploads_text(self.uploads_removed_after_days)}"


def bucket_rules(store: ObjectStore, prefix: StoreUri) -> BucketRules:
    """Return the rules for what lies below `prefix`; one request each, not retried."""
    return BucketRules(is_versioned(store, prefix.bucket), _uploads_removed_after_days(store, prefix))


def is_versioned(store: ObjectStore, bucket: str) -> bool | None:
    """Return whether deleted and replaced objects stay as versions, None if the bucket does not say."""
    with suppress(ClientError, BotoCoreError, ResponseParserError, OSError):
        return store.client.get_bucket_versioning(Bucket=bucket).get("Status") == "Enabled"
    return None


def _uploads_removed_after_days(store: ObjectStore, prefix: StoreUri) -> int | None:
    try:
        rules = store.client.get_bucket_lifecycle_configuration(Bucket=prefix.bucket).get("Rules", [])
    except ClientError as error:
        return 0 if code(error) == _NO_RULES else None
    except (BotoCoreError, ResponseParserError, OSError):
        return None
    days = [rule["AbortIncompleteMultipartUpload"]["DaysAfterInitiation"] for rule in rules if _applies(rule, prefix)]
    return min(days, default=0)


def _applies(rule: Mapping[str, Any], prefix: StoreUri) -> bool:
    """Return whether a lifecycle rule removes the incomplete uploads below `prefix`; rules with a filter of tags have none to remove."""
    condition = rule.get("Filter") or {}
    below = condition.get("Prefix", rule.get("Prefix", ""))
    is_of_prefix = set(condition) <= {"Prefix"} and f"{prefix.key}/".startswith(below)
    return rule.get("Status") == "Enabled" and is_of_prefix and "DaysAfterInitiation" in rule.get("AbortIncompleteMultipartUpload", {})


def _versions_text(is_versioned: bool | None) -> str:
    if is_versioned is None:
        return "it does not say whether it keeps versions"
    if not is_versioned:
        return "no versions are kept: what retention deletes costs nothing more"
    return "versions are kept: what retention deletes is stored and paid for until a lifecycle rule removes noncurrent versions"


def _uploads_text(days: int | None) -> str:
    if days is None:
        return "it does not say whether a rule removes incomplete uploads"
    if days:
        return f"incomplete uploads are removed after {days} day{'s' if days > 1 else ''}"
    return "no rule removes incomplete uploads: the parts of a killed one are paid for until the run's next attempt aborts them"
