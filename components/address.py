"""Parse the address of a server that a person wrote. Never fails and never shows the address, which may hold a password."""

from urllib.parse import SplitResult, urlsplit


def split_url(text: str) -> SplitResult | None:
    """Return the parts of a URL with a valid port, or None if `text` is none."""
    try:
        parts = urlsplit(text)
        parts.port  # noqa: B018 - raises ValueError if it is not a number
    except ValueError:
        return None
    return parts


def is_server_url(text: str) -> bool:
    """Return whether `text` is the http or https URL of a server."""
    parts = split_url(text)
    if parts is None or parts.scheme not in ("http", "https") or not parts.hostname:
        return False
    return not any(character.isspace() for character in parts.netloc)
