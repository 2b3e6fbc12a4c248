"""Telling somebody over HTTP: one bounded JSON POST, and no answer is waited for beyond its status.

Only https, or http to this very machine, so that what is told cannot be read or changed on the way.
"""

import http.client
import urllib.error
import urllib.request
from urllib.parse import urlsplit

from commonweal_protocols.base import canonical
from commonweal_protocols.base.canonical import Json
from commonweal_protocols.base.errors import ConfigError, UnavailableError
from commonweal_protocols.base.opener import is_loopback, opener_for

MAX_BODY_BYTES = 64 << 10
TIMEOUT_SECONDS = 10


def check_webhook(url: str) -> None:
    """Check that an address may be told.

    Raises:
        ConfigError: Not https, and not http to a loopback address.
    """
    parts = urlsplit(url)
    if not parts.hostname or not (parts.scheme == "https" or (parts.scheme == "http" and is_loopback(url))):
        raise ConfigError(f"webhook {url}: wanted https://, or http:// to this machine")


def post_webhook(url: str, message: Json) -> None:
    """POST a message as JSON.

    Args:
        url: Checked by :func:`check_webhook`.
        message: At most :data:`MAX_BODY_BYTES` when encoded: the caller keeps it short.

    Raises:
        UnavailableError: It could not be delivered, is too long, or the answer was not a success.
    """
    body = canonical.encode(message)
    if len(body) > MAX_BODY_BYTES:
        raise UnavailableError(f"webhook {url}: wanted at most {MAX_BODY_BYTES} bytes to send, got {len(body)}")
    request = urllib.request.Request(  # noqa: S310 - the scheme was checked
        url, data=body, method="POST", headers={"Content-Type": "application/json", "User-Agent": "commonweal-audit"}
    )
    try:
        with opener_for(url).open(request, timeout=TIMEOUT_SECONDS):
            pass
    except urllib.error.HTTPError as e:
        with e:
            raise UnavailableError(f"webhook {url}: answered {e.code}") from e
    except (OSError, http.client.HTTPException) as e:
        raise UnavailableError(f"webhook {url}: does not answer: {e}") from e
