"""Requests that MLflow's client cannot make, because a variable of the environment has a value that none can be made with.

Promises: pure functions of what MLflow's client (3.17) says; the error names the variable, and never the value of a credential.
"""

import re

from components.errors import BadInput, shorten

_HEADER = re.compile(r"Invalid header value|Invalid leading whitespace, reserved character|'latin-1' codec can't encode")
_NO_FILE = re.compile(r"Could not find (?:a suitable TLS CA certificate bundle|the TLS (?:certificate|key) file), invalid path: (.+)")
_NO_CERTIFICATE = re.compile(r"\[X509\b[^\]]*\]|\[SSL\] PEM lib")
_VALUE = re.compile(r"(MLFLOW_\w+) value must be one of|Failed to convert .* for (MLFLOW_\w+): ")
_INSECURE = "'ignore_tls_verification' is true then 'server_cert_path' must not be set"
_WORKSPACE = "Active workspace "
_CERTIFICATES_HINT = "check MLFLOW_TRACKING_SERVER_CERT_PATH, MLFLOW_TRACKING_CLIENT_CERT_PATH and REQUESTS_CA_BUNDLE"


def unsent_error(uri: str, text: str) -> BadInput | None:
    """Return the error for a request to `uri` that was never sent, or None; `text` is what MLflow's client says of it."""
    if _HEADER.search(text):
        return BadInput(
            f"no request to MLflow at {uri} can be made: a header cannot hold MLFLOW_TRACKING_TOKEN, or MLFLOW_WORKSPACE if it is set",
            hint="set it again without a line break at its end, and without letters that are not ASCII",
        )
    if file := _NO_FILE.search(text):
        return BadInput(f"the file of certificates {shorten(file[1])} does not exist", hint=_CERTIFICATES_HINT)
    if _NO_CERTIFICATE.search(text):
        return BadInput(f"a file of certificates for MLflow at {uri} is damaged or has none", hint=_CERTIFICATES_HINT)
    if _INSECURE in text:
        return BadInput("MLFLOW_TRACKING_INSECURE_TLS and MLFLOW_TRACKING_SERVER_CERT_PATH are both set", hint="unset one of them")
    if text.startswith(_WORKSPACE):
        return BadInput(
            f"MLFLOW_WORKSPACE cannot be used with MLflow at {uri}: {shorten(text.splitlines()[0], max_characters=200)}",
            hint="unset MLFLOW_WORKSPACE",
        )
    return None


def variable_error(error: Exception) -> BadInput | None:
    """Return the error for a variable that MLflow's client cannot read, or None if `error` is about something else."""
    variable = _VALUE.match(str(error)) if isinstance(error, ValueError) else None
    if variable is None:
        return None
    name = variable[1] or variable[2]
    return BadInput(f"environment variable {name} cannot be used: {shorten(str(error), max_characters=200)}", hint=f"unset {name}")
