"""One bounded POST: the part that all HTTP sinks share.

Follows no redirect, and uses no proxy or netrc of the environment: an alert goes where the settings say.
"""

from collections.abc import Mapping
from urllib.parse import urlsplit

import httpx
from tenacity import Retrying, retry_if_exception_type, stop_after_attempt, wait_random_exponential

from leitstand.errors import ConfigurationError, PermanentBackendError, TransientBackendError

__all__ = ["checked_url", "post"]

_MOMENTARY = frozenset({408, 425, 429})
_MAX_WAIT_S = 2.0
_SHOWN = 200


def checked_url(url: str, setting: str) -> str:
    """The URL as it was given.

    Raises:
        ConfigurationError: It is no HTTP URL; the message names the setting and not the URL, which may be secret.
    """
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigurationError(f"{setting} is not an HTTP URL", hint="write it like https://host/path")
    return url


def post(
    url: str, body: bytes, *, name: str, headers: Mapping[str, str], timeout_s: float, attempts: int
) -> None:  # fmt: skip
    """Posts `body` until the other side answers 2xx, at most `attempts` times with up to 2 s between.

    Args:
        url: Where to.
        body: Sent as it is.
        name: Of the sink, for messages; the URL is not shown, because it may be a secret.
        headers: With the content type.
        timeout_s: For connecting, and again for the answer of one attempt.
        attempts: At least 1.

    Raises:
        TransientBackendError: No answer, 408, 425, 429 or 5xx, at the last attempt too.
        PermanentBackendError: Any other answer.
    """
    retrying = Retrying(
        stop=stop_after_attempt(attempts),
        wait=wait_random_exponential(multiplier=0.1, max=_MAX_WAIT_S),
        retry=retry_if_exception_type(TransientBackendError),
        reraise=True,
    )
    with httpx.Client(timeout=timeout_s, follow_redirects=False, trust_env=False) as client:
        retrying(_post_once, client, url, body, name, dict(headers))


def _post_once(client: httpx.Client, url: str, body: bytes, name: str, headers: dict[str, str]) -> None:
    try:
        answer = client.post(url, content=body, headers=headers)
    except (httpx.InvalidURL, httpx.UnsupportedProtocol, UnicodeError) as error:
        raise PermanentBackendError(f"{name} has a URL that cannot be used", hint="correct the setting") from error
    except httpx.HTTPError as error:
        raise TransientBackendError(f"{name} gave no answer: {type(error).__name__}") from error
    if answer.is_success:
        return
    said = f"{name} answered {answer.status_code}: {answer.text[:_SHOWN]!r}"
    if answer.is_server_error or answer.status_code in _MOMENTARY:
        raise TransientBackendError(said)
    raise PermanentBackendError(said, hint="check the address and the credentials of the sink")
