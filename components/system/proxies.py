"""The forward proxy between this machine and an address, for clients that do not read it from the environment themselves.

Promises: HTTP_PROXY, HTTPS_PROXY, ALL_PROXY and NO_PROXY, in upper or lower case, mean what they mean to MLflow's client (requests), with
networks such as 10.0.0.0/8 in NO_PROXY; a server of this machine is never behind a proxy. An error does not quote the address of a proxy,
which may hold a password.
"""

import base64
import ipaddress
from dataclasses import dataclass, field
from urllib.parse import unquote, urlsplit
from urllib.request import getproxies

from requests.utils import should_bypass_proxies
from urllib3.exceptions import LocationParseError
from urllib3.util import Url, parse_url

from components.errors import BadInput


@dataclass(frozen=True)
class Proxy:
    """A forward proxy, and the headers with which it is logged in to; they show in no representation."""

    url: str
    headers: dict[str, str] = field(repr=False)


def proxy_for(url: str, *, reads_all_proxy: bool = True) -> Proxy | None:
    """Return the proxy through which `url` is reached, or None if it is reached without one.

    Without `reads_all_proxy` the variable of the address' own scheme counts alone, as for kubectl.

    Raises:
        ValueError: if `url` is no address. BadInput: if that of the proxy cannot be used.
    """
    parts = urlsplit(url)
    proxies = getproxies()
    address = (proxies.get(parts.scheme) or (proxies.get("all") if reads_all_proxy else None) or "").strip()
    if not address or _is_here(parts.hostname or "") or should_bypass_proxies(url, no_proxy=None):
        return None
    return read_proxy(address, named_by=f"{parts.scheme.upper()}_PROXY or ALL_PROXY")


def read_proxy(address: str, *, named_by: str) -> Proxy:
    """Return the proxy at `address`, which may hold a user name and a password; `named_by` is where it is set.

    Raises:
        BadInput: if it cannot be used.
    """
    scheme, _, place = address.rpartition("://")
    login, _, server = place.rpartition("@")
    proxy = _parse(f"{scheme or 'http'}://{server}", named_by=named_by)
    return Proxy(proxy.url, {"proxy-authorization": _basic(unquote(login))} if login else {})


def _parse(address: str, *, named_by: str) -> Url:
    """Return the parts of the address of a proxy."""
    try:
        proxy = parse_url(address)
    except LocationParseError:
        proxy = Url()
    if proxy.scheme not in ("http", "https") or not proxy.host:
        raise BadInput(
            f"the address of the proxy in {named_by} cannot be used",
            hint="write it as http://HOST:PORT, with USER:PASSWORD@ before HOST where the proxy requires it; SOCKS is not supported",
        )
    return proxy


def _basic(login: str) -> str:
    return f"Basic {base64.b64encode(login.encode()).decode()}"


def _is_here(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
