"""Recognises errors of a call to object storage that are no answer of the store: connections, certificates, credentials, configuration.

Promises: pure functions of the error.
"""

import ssl

from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConfigNotFound,
    ConfigParseError,
    CredentialRetrievalError,
    FlexibleChecksumError,
    HTTPClientError,
    InvalidConfigError,
    InvalidRegionError,
    LoginError,
    MetadataRetrievalError,
    NoCredentialsError,
    ParamValidationError,
    PartialCredentialsError,
    ProfileNotFound,
    RefreshWithMFAUnsupportedError,
    ResponseStreamingError,
    SSLError,
    SSOError,
    TokenRetrievalError,
    UnknownCredentialError,
)
from botocore.parsers import ResponseParserError

from components.errors import CelebditError
from components.system.disk import LOCAL
from components.system.failures import was_raised_in

_MISCONFIGURED = (
    *(ConfigNotFound, ConfigParseError, InvalidConfigError, InvalidRegionError, NoCredentialsError, ParamValidationError),
    *(PartialCredentialsError, ProfileNotFound, UnknownCredentialError),
)
_SESSION_OVER = (LoginError, RefreshWithMFAUnsupportedError, SSOError, TokenRetrievalError)
_BROKEN_TLS = ("EOF", "timed out", "reset by peer", "Broken pipe", "BAD_RECORD_MAC")
"""What an error of TLS says where the connection was lost; the others are about certificates, files of them, or versions of TLS."""
_NO_BUNDLE = "CA certificate bundle"


class Incomplete(Exception):
    """A response ended early; the received bytes are kept and the rest is requested again."""


def is_certificate_error(error: Exception) -> bool:
    """Return whether no connection is made because of certificates, here or there, or because one side does not speak TLS."""
    if isinstance(error, SSLError):
        return not any(text in str(error) for text in _BROKEN_TLS)
    causes = (error, error.__cause__, error.__context__, getattr(error, "kwargs", {}).get("error"))
    return isinstance(error, OSError | HTTPClientError) and any(
        isinstance(cause, ssl.SSLCertVerificationError) or _NO_BUNDLE in str(cause) for cause in causes
    )


def is_misconfigured(error: Exception) -> bool:
    """Return whether the request was never sent because credentials, profile, region or a parameter cannot be used."""
    return isinstance(error, _MISCONFIGURED)


def is_session_over(error: Exception) -> bool:
    """Return whether a person must log in before there are credentials again."""
    return isinstance(error, _SESSION_OVER)


def is_source_of_credentials(error: Exception) -> bool:
    """Return whether a process or a service that provides credentials failed."""
    return isinstance(error, CredentialRetrievalError | MetadataRetrievalError)


def is_corrupt_transfer(error: Exception) -> bool:
    """Return whether boto3 has seen that the bytes do not fit their checksum."""
    return isinstance(error, FlexibleChecksumError)


def is_unreadable(error: Exception) -> bool:
    """Return whether boto3 cannot read the answer, as if another server than an S3 server had answered."""
    return isinstance(error, ResponseParserError) or (
        not isinstance(error, OSError | MemoryError | CelebditError | BotoCoreError | ClientError | Incomplete)
        and was_raised_in(error, "botocore", "urllib3")
    )


def is_lost_connection(error: Exception) -> bool:
    """Return whether a connection failed or ended early, and not a local file: a file name or the number of the error tells them apart."""
    if isinstance(error, ResponseStreamingError | Incomplete | BotoCoreError):
        return True
    return isinstance(error, OSError) and error.filename is None and error.errno not in LOCAL
