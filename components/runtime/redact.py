"""Keep secrets out of what is printed, logged and stored.

Promises: `redact` replaces the value of every known secret variable, credentials inside URLs and AWS signatures, wherever they stand in a
text. It knows values from the environment it is given, so it must be made at the entry point. Which of our variables are secret is in
`components/environment.py`; those of other programs are recognised by their names.
"""

import json
import os
import re
from collections.abc import Callable, Mapping
from urllib.parse import quote, quote_plus

from components.environment import SECRETS

_SECRET_NAME = re.compile(r"(SECRET|PASSWORD|PASSWD|TOKEN|ACCESS_KEY|API_KEY|CREDENTIAL|COOKIE|KAGGLE_KEY|RCLONE_AUTH)", re.IGNORECASE)
_NOT_SECRET = re.compile(r"(_FILE|_URI|_URL|_PATH)$", re.IGNORECASE)
_PATTERNS = (
    re.compile(r'(?<=://)[^/\s:@"]*(?::[^\s"]*)?(?=@)'),  # the password may hold any character, a slash or an @ too
    re.compile(r"(?<=Credential=)[^\s/,&]+"),
    re.compile(r"(?<=Signature=)[0-9A-Za-z%+/=]+"),
    re.compile(r"(?<=[Bb]earer )[0-9A-Za-z._~+/=-]{8,}"),
)
_MASK = "***"
_SHORTEST = 6


def is_secret(name: str) -> bool:
    """Return whether an environment variable of this name holds a secret."""
    return name in SECRETS or (bool(_SECRET_NAME.search(name)) and not _NOT_SECRET.search(name))


def redactor(environ: Mapping[str, str] | None = None) -> Callable[[str], str]:
    """Return a function that masks the secrets of `environ`, by default this process's environment, in a text."""
    environ = os.environ if environ is None else environ
    named = {part for name, value in environ.items() if is_secret(name) for part in (value, *_cookies(name, value))}
    values = sorted({form for value in named for form in _forms(value) if len(form) >= _SHORTEST}, key=len, reverse=True)

    def redact(text: str) -> str:
        for value in values:
            text = text.replace(value, _MASK)
        for pattern in _PATTERNS:
            text = pattern.sub(_MASK, text)
        return text

    return redact


def _forms(value: str) -> list[str]:
    """Return a secret as errors quote it: its lines, with escapes, and as a part of a URL, whose escapes may be of small letters."""
    raw = value.encode(errors="surrogateescape")
    in_urls = [quote(raw, safe=""), quote(raw), quote_plus(raw)]
    in_urls += [re.sub("%..", lambda escape: escape[0].lower(), form) for form in in_urls]
    return [value, *value.splitlines(), value.strip(), repr(value)[1:-1], repr(raw)[2:-1], json.dumps(value)[1:-1], *in_urls]


def _cookies(name: str, value: str) -> list[str]:
    """Return the values of the single cookies, which a server may name one by one."""
    return [cookie.partition("=")[2] for cookie in value.split("; ")] if "COOKIE" in name.upper() else []
