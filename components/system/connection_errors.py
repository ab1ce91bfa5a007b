"""What an error of urllib3 says of a connection: a reason in words, and whether waiting cannot help.

Promises: pure functions of the error; no value of a header is in what they return.
"""

import re
from collections.abc import Mapping
from types import MappingProxyType

from urllib3.exceptions import ProxyError

_NOISE = re.compile(r"\[\w+: \w+\] | \(_ssl\.c:\d+\)|[\"')]+$")
_FAULTS: Mapping[str, str] = MappingProxyType(
    {
        "CERTIFICATE_VERIFY_FAILED": "its certificate cannot be verified",
        "WRONG_VERSION_NUMBER": "it does not speak TLS",
        "NO_CERTIFICATE_OR_CRL_FOUND": "the certificates to verify it with cannot be read",
        "PEM lib": "the certificates to verify it with, or to log in with, cannot be read",
    }
)


def tls_fault(error: Exception) -> str | None:
    """Return what is wrong with TLS, as a clause about the server, or None if it is something else or may pass."""
    text = str(error)
    clause = next((clause for mark, clause in _FAULTS.items() if mark in text), None)
    if clause is not None and _is_of_proxy(error):
        return f"the proxy before it fails: {clause}; check HTTP_PROXY, HTTPS_PROXY and ALL_PROXY"
    return clause


def is_header_refused(error: Exception) -> bool:
    """Return whether a request was never sent because no header can hold a value, as that of a token with a line break."""
    return isinstance(error, UnicodeEncodeError) or (isinstance(error, ValueError) and "Invalid header value" in str(error))


def plain_reason(error: Exception) -> str:
    """Return the innermost reason of an error, without what only programmers of TLS can use."""
    inner = getattr(error, "reason", None)
    if isinstance(inner, ProxyError):
        inner = inner.original_error
    text = str(inner if isinstance(inner, Exception) else error)
    reason = " ".join(_NOISE.sub("", text).split(": ")[-1].split())[:200] or type(error).__name__
    return f"the proxy before it fails: {reason}" if _is_of_proxy(error) else reason


def _is_of_proxy(error: Exception) -> bool:
    """Return whether a request failed at the proxy, before the server that is behind it was reached."""
    return isinstance(error, ProxyError) or isinstance(getattr(error, "reason", None), ProxyError)
