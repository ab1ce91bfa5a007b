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
    EndpointConnectionError,
    EndpointProviderError,
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
    ProxyConnectionError,
    RefreshWithMFAUnsupportedError,
    ResponseStreamingError,
    SSLError,
    SSOError,
    TokenRetrievalError,
    UnknownCredentialError,
)
from botocore.parsers import ResponseParserError
from urllib3.exceptions import LocationParseError

from components.address import split_url
from components.errors import CelebditError, first_line
from components.system.disk import LOCAL
from components.system.failures import was_raised_in

_MISCONFIGURED = (
    *(ConfigNotFound, ConfigParseError, InvalidConfigError, InvalidRegionError, NoCredentialsError, ParamValidationError),
    *(PartialCredentialsError, ProfileNotFound, UnknownCredentialError, EndpointProviderError),
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
    return isinstance(error, _MISCONFIGURED) or _unsendable_request(error) is not None or _is_missing_source(error)


def describe_misconfiguration(error: Exception) -> str:
    """Return what cannot be used, without the header or the address itself: those hold a signature or a password."""
    if isinstance(_unsendable_request(error), LocationParseError):
        return "the address of a proxy cannot be read (HTTP_PROXY, HTTPS_PROXY)"
    if _unsendable_request(error) is not None:
        return "a line break or another control character is in a credential, the region or the key of KMS"
    return first_line(error)


def _is_missing_source(error: Exception) -> bool:
    """Return whether a file or a program from which the chain of credentials would read them does not exist."""
    trace = error.__traceback__ if isinstance(error, FileNotFoundError) else None
    while trace is not None:
        if trace.tb_frame.f_globals.get("__name__") == "botocore.credentials":
            return True
        trace = trace.tb_next
    return False


def _unsendable_request(error: Exception) -> ValueError | None:
    """Return why a request could not be written at all: http.client refuses a header, or urllib3 an address."""
    cause = error.kwargs.get("error") if isinstance(error, HTTPClientError) else None
    return cause if isinstance(cause, LocationParseError) or (isinstance(cause, ValueError) and "header" in str(cause)) else None


def unreached_address(error: Exception) -> str | None:
    """Return the host and port to which no connection could be made, of a proxy with that word, or None for other errors."""
    if not isinstance(error, EndpointConnectionError | ProxyConnectionError):
        return None
    is_proxy = isinstance(error, ProxyConnectionError)
    parts = split_url(str(error.kwargs.get("proxy_url" if is_proxy else "endpoint_url", "")))
    host = parts.netloc.rpartition("@")[2] if parts is not None else ""
    return f"proxy {host}" if is_proxy else host


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
