"""Webhook that receives every promotion and rollback as JSON.

Promises: the URL comes from the environment only, because such URLs are secrets; a webhook that does not respond delays a command by
seconds and never fails it; nothing but the promotion is sent.
"""

import json
import urllib.error
import urllib.request
from collections.abc import Mapping
from http.client import HTTPException

from components.address import is_server_url
from components.command_settings import CommandSettings
from components.environment import WEBHOOK
from components.errors import BadInput

_TIMEOUT_S = 10.0


def webhook_url(settings: CommandSettings) -> str | None:
    """Return the URL of the webhook, or None if none is configured.

    Raises:
        BadInput: if it is not http or https; the error does not contain it, because it may be secret.
    """
    url = settings.webhook_url
    if url is None:
        return None
    if not is_server_url(url):
        raise BadInput(f"{WEBHOOK} is not an http or https address", hint="correct it or unset it")
    return url


def send(url: str, facts: Mapping[str, object]) -> str | None:
    """POST `facts` as JSON to `url`; return why that failed, or None."""
    request = urllib.request.Request(url, json.dumps(facts).encode(), {"Content-Type": "application/json"})  # noqa: S310 - http(s), checked
    try:
        with urllib.request.urlopen(request, timeout=_TIMEOUT_S):  # noqa: S310
            return None
    except urllib.error.HTTPError as refused:
        return f"it answered {refused.code}"
    except (OSError, ValueError, HTTPException) as error:  # HTTPException: what answers speaks no HTTP
        return f"it cannot be reached ({type(error).__name__})"
