"""Opening addresses that somebody else has named: no redirect is followed, and nothing for this host leaves it.

A redirect would have a host ask whatever inner address a peer names. A proxy that the environment sets is used for
other hosts, and never for this one.
"""

import ipaddress
import ssl
import urllib.request
from urllib.parse import urlsplit


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *args: object, **kwargs: object) -> None:
        return None


def is_loopback(url: str) -> bool:
    """Whether an address is on this very host."""
    host = urlsplit(url).hostname or ""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def opener_for(url: str, context: ssl.SSLContext | None = None) -> urllib.request.OpenerDirector:
    """Return what opens an address; a redirect is an ``HTTPError`` with its status.

    Args:
        url: Where it is to lead; only its host matters.
        context: Whom to trust for TLS; None: whom the system trusts.
    """
    handlers: list[urllib.request.BaseHandler] = [_NoRedirect(), urllib.request.HTTPSHandler(context=context)]
    if is_loopback(url):
        handlers.append(urllib.request.ProxyHandler({}))
    return urllib.request.build_opener(*handlers)
