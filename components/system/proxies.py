"""The forward proxy between this machine and an address, for clients that do not read it from the environment themselves.

Promises: HTTP_PROXY, HTTPS_PROXY, ALL_PROXY and NO_PROXY, in upper or lower case, mean what they mean to Python's own client; a server of
this machine is never behind a proxy.
"""

import ipaddress
from dataclasses import dataclass, field
from urllib.parse import unquote, urlsplit
from urllib.request import getproxies, proxy_bypass

from urllib3.util import make_headers


@dataclass(frozen=True)
class Proxy:
    """A forward proxy, and the headers with which it is logged in to; they show in no representation."""

    url: str
    headers: dict[str, str] = field(repr=False)


def proxy_for(url: str) -> Proxy | None:
    """Return the proxy through which `url` is reached, or None if it is reached without one.

    Raises:
        ValueError: if `url` is no address.
    """
    parts = urlsplit(url)
    proxies = getproxies()
    address = proxies.get(parts.scheme) or proxies.get("all")
    if not address or _is_here(parts.hostname or "") or proxy_bypass(parts.netloc.rpartition("@")[2]):
        return None
    scheme, _, place = address.rpartition("://")
    login, _, server = place.rpartition("@")
    return Proxy(f"{scheme or 'http'}://{server}", dict(make_headers(proxy_basic_auth=unquote(login))) if login else {})


def _is_here(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
