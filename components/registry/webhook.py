"""Webhook that receives every promotion and rollback as JSON.

Promises: the URL comes from the environment only, because such URLs are secrets; a webhook that does not respond delays a command by
10 seconds at most and never fails it; nothing but the promotion is sent.
"""

import json
import threading
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


def send(url: str, facts: Mapping[str, object], *, timeout_s: float = _TIMEOUT_S) -> str | None:
    """POST `facts` as JSON to `url`; return why that failed, or None.

    Waits for `timeout_s` in all: the time-out of a socket begins again with every byte, so that a slow answer could take hours.
    """
    problems: list[str | None] = []
    request = threading.Thread(target=lambda: problems.append(_post(url, facts, timeout_s)), name="webhook", daemon=True)
    request.start()
    request.join(timeout_s)
    return problems[0] if problems else f"it did not answer within {timeout_s:g} s"


def _post(url: str, facts: Mapping[str, object], timeout_s: float) -> str | None:
    request = urllib.request.Request(url, json.dumps(facts).encode(), {"Content-Type": "application/json"})  # noqa: S310 - http(s), checked
    try:
        with urllib.request.urlopen(request, timeout=timeout_s):  # noqa: S310
            return None
    except urllib.error.HTTPError as refused:
        return f"it answered {refused.code}"
    except (OSError, ValueError, HTTPException) as error:  # HTTPException: what answers speaks no HTTP
        return f"it cannot be reached ({type(error).__name__})"
