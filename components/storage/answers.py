"""What each answer of object storage means and what to do next: one table for every call, the start-up probe and the doctor.

To "wait" is to repeat the request until the deadline; to "refuse" is to end at once, because waiting does not help; "data" says that an
object is missing or that its bytes are wrong. docs/troubleshooting.md prints the table (`answers_table`), and a test compares the two.
`faults.py` finds the row of an error, `call_errors.py` makes the project's own error of it.
"""

from dataclasses import dataclass
from typing import Literal

Action = Literal["wait", "refuse", "data"]


@dataclass(frozen=True)
class Answer:
    """One kind of answer: by which codes and statuses it is recognised, what follows from it, and what to do."""

    name: str
    action: Action
    meaning: str
    fix: str
    codes: tuple[str, ...] = ()
    statuses: tuple[int, ...] = ()
    """Of answers whose code is in no row."""
    other: str = ""
    """What it is recognised by besides, in words."""
    may_be_addressing: bool = False
    """Whether a store answers so to addresses of the wrong style."""


RUN_AGAIN = "run it again when object storage is back: finished work is kept"
SET_CLOCK = "set the clock of this machine (NTP); object storage refuses requests whose time is more than 15 minutes off"

SLOW = Answer(
    "slow",
    "wait",
    "the store asks for fewer requests",
    RUN_AGAIN,
    (
        *("SlowDown", "SlowDownRead", "SlowDownWrite", "TooManyRequests", "Throttling", "ThrottlingException", "RequestLimitExceeded"),
        *("BandwidthLimitExceeded", "KMS.ThrottlingException"),
    ),
    (429, 503),
)
UNAVAILABLE = Answer(
    "unavailable",
    "wait",
    "the store fails for now",
    RUN_AGAIN,
    (
        *("InternalError", "ServiceUnavailable", "RequestTimeout", "OperationAborted"),
        *("KMS.KMSInternalException", "KMS.DependencyTimeoutException"),
    ),
    (408, 425),
    "HTTP 5xx, a timeout, a reset or refused connection, an answer that ends early",
)
UNREADABLE = Answer(
    "unreadable",
    "wait",
    "no S3 server answers",
    "check the path to the store: its answers are not those of an S3 server",
    other="an answer that cannot be read",
)
CONFLICT = Answer(
    "conflict",
    "refuse",
    "another program writes the same object; the upload is repeated from its start, seven times in half a minute",
    "see what else writes below CELEBDIT_STORE: end it, or give each of them a prefix of its own; then run it again: finished work is kept",
    ("ConditionalRequestConflict",),
)
REGION = Answer(
    "region",
    "refuse",
    "the bucket is in another region",
    "set AWS_REGION to the region that the message names; if it names none, check AWS_REGION and AWS_ENDPOINT_URL",
    ("PermanentRedirect", "TemporaryRedirect", "AuthorizationHeaderMalformed", "IllegalLocationConstraintException", "IncorrectEndpoint"),
    (301, 307, 308),
    may_be_addressing=True,
)
SKEWED = Answer(
    "skewed",
    "refuse",
    "the clocks differ, by as much as the message says; if they do not, the request was late and is repeated",
    SET_CLOCK,
    ("RequestTimeTooSkewed", "RequestExpired", "RequestInTheFuture"),
)
EXPIRED = Answer(
    "expired",
    "refuse",
    "the temporary credentials have expired; the credential chain is asked for new ones, four times in a second or two, and has none",
    "get new credentials (AWS_SESSION_TOKEN, the profile, the token file), then run it again: finished work is kept",
    ("ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired"),
)
KEYS = Answer(
    "keys",
    "refuse",
    "the store does not accept the credentials",
    "check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and, for temporary credentials, AWS_SESSION_TOKEN",
    (
        *("InvalidAccessKeyId", "SignatureDoesNotMatch", "InvalidToken", "InvalidSecurity", "InvalidClientTokenId"),
        *("UnrecognizedClientException", "NotSignedUp", "AuthFailure"),
    ),
    may_be_addressing=True,
)
ROLE = Answer(
    "role",
    "refuse",
    "the credential chain gets no credentials",
    "check AWS_ROLE_ARN, AWS_WEB_IDENTITY_TOKEN_FILE and the role's trust policy; log in again if it is a profile of SSO",
    other="an error of STS or SSO",
)
NO_BUCKET = Answer(
    "no-bucket",
    "refuse",
    "there is no such bucket",
    "check the bucket's name in CELEBDIT_STORE and the server in AWS_ENDPOINT_URL, or make the bucket",
    ("NoSuchBucket", "InvalidBucketName"),
    may_be_addressing=True,
)
KMS = Answer(
    "kms",
    "refuse",
    "the key for server-side encryption cannot be used",
    "check CELEBDIT_S3_KMS_KEY_ID, that the key is enabled and in the bucket's region, and the rights kms:GenerateDataKey and kms:Decrypt",
    ("InvalidEncryptionAlgorithmError", "ServerSideEncryptionConfigurationNotFoundError"),
    other="codes that begin with KMS",
)
STORAGE_CLASS = Answer(
    "storage-class", "refuse", "the store does not have this storage class", "check CELEBDIT_S3_STORAGE_CLASS", ("InvalidStorageClass",)
)
QUOTA = Answer(
    "quota",
    "refuse",
    "the store has no room",
    "free space in the store, or raise its quota; then run it again: finished work is kept",
    ("QuotaExceeded", "XMinioStorageFull", "XMinioAdminBucketQuotaExceeded", "InsufficientStorage", "InsufficientCapacity"),
    (507,),
)
DENIED = Answer(
    "denied",
    "refuse",
    "these credentials may not do this",
    "grant the right that the message names; a bucket whose requester pays needs CELEBDIT_S3_REQUEST_PAYER=requester",
    ("AccessDenied", "AllAccessDisabled", "AccountProblem", "Forbidden"),
    (401, 403),
    may_be_addressing=True,
)
MISSING = Answer(
    "missing",
    "data",
    "the object does not exist",
    "check CELEBDIT_STORE; the step that makes the object makes it again",
    ("NoSuchKey", "NoSuchVersion"),
    (404, 410),
    "403 for a key that a listing does not have",
)
ARCHIVED = Answer(
    "archived", "data", "the object is in an archive that cannot be read at once", "restore it, then run it again", ("InvalidObjectState",)
)
CORRUPT = Answer(
    "corrupt",
    "data",
    "bytes arrived corrupt; the transfer is repeated, three times in all",
    "check the network path",
    ("BadDigest", "InvalidDigest", "XAmzContentSHA256Mismatch", "XAmzContentChecksumMismatch"),
)
LOST_UPLOAD = Answer(
    "lost-upload",
    "data",
    "the upload was aborted meanwhile; it is begun again, three times in all",
    "see what else removes incomplete uploads from the bucket",
    ("NoSuchUpload",),
)
CERTIFICATE = Answer(
    "certificate",
    "refuse",
    "the server's certificate is not trusted, or does not fit its name",
    "set AWS_CA_BUNDLE to the file with the certificate authority, or check AWS_ENDPOINT_URL",
    other="an error of TLS",
)
NO_CREDENTIALS = Answer(
    "no-credentials",
    "refuse",
    "no request was sent: credentials, profile or name cannot be used",
    "check the AWS_ variables and the name",
    other="an error of the configuration",
)
CREDENTIALS_SOURCE = Answer(
    "credentials-source",
    "wait",
    "the source of the credentials fails for now",
    "check what serves the credentials: credential_process, the container's or the machine's service",
    other="an error of the source of credentials",
)
OTHER_SERVER = Answer(
    "other-server",
    "refuse",
    "the server does not do what S3 does",
    "check AWS_ENDPOINT_URL and what lies before the server: a proxy or a login page may answer",
    ("NotImplemented", "MethodNotAllowed"),
    (302, 303, 305, 405, 407, 411, 418, 501, 505),
    may_be_addressing=True,
)
REFUSED = Answer(
    "refused",
    "refuse",
    "the store does not accept the request",
    "the code is the server's own; check the bucket's name, the AWS_ variables and the permissions to put, get, list and delete",
    other="any other HTTP 4xx",
    may_be_addressing=True,
)

ANSWERS = (
    *(SLOW, UNAVAILABLE, UNREADABLE, CREDENTIALS_SOURCE, CONFLICT, REGION, SKEWED, EXPIRED, KEYS, ROLE, NO_CREDENTIALS, NO_BUCKET, DENIED),
    *(KMS, STORAGE_CLASS, QUOTA, CERTIFICATE, OTHER_SERVER, REFUSED, MISSING, ARCHIVED, CORRUPT, LOST_UPLOAD),
)
"""Every kind of answer; the ones that an error is none of are internal errors."""


def answers_table() -> str:
    """Return the table of docs/troubleshooting.md, one row per kind of answer."""
    words = {"wait": "waits until the deadline", "refuse": "ends at once, exit code 2", "data": "ends with exit code 3"}
    lines = ["| answer of object storage | what celebdit does | meaning | what to do |", "|---|---|---|---|"]
    return "\n".join([*lines, *(f"| {_recognised_by(item)} | {words[item.action]} | {item.meaning} | {item.fix} |" for item in ANSWERS)])


def _recognised_by(answer: Answer) -> str:
    codes = [f"`{name}`" for name in answer.codes]
    return ", ".join([*codes, *(f"HTTP {number}" for number in answer.statuses), *([answer.other] if answer.other else [])])
