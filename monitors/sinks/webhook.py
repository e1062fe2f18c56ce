"""Alerts as CloudEvents 1.0 in structured JSON mode, signed when there is a secret.

Specification: github.com/cloudevents/spec, `cloudevents/spec.md` and `bindings/http-protocol-binding.md`, v1.0.2.
The `id` follows from the alert, so a receiver that keeps ids sees each notification once, however often it
is delivered. `cloud_event` and `send_event` serve other events of the loop as well.
"""

import hashlib
import hmac
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from leitstand.files import canonical_json, digest_json
from leitstand.types import Alert
from monitors.sinks.http import checked_url, post

__all__ = ["SIGNATURE_HEADER", "WebhookSink", "cloud_event", "signature"]

CONTENT_TYPE = "application/cloudevents+json; charset=UTF-8"
SIGNATURE_HEADER = "x-leitstand-signature"


def cloud_event(kind: str, *, use_case: str, subject: str, at: datetime, data: Mapping[str, Any]) -> dict[str, Any]:
    """A CloudEvent of type `kind` (like ``leitstand.drift.detected``); equal arguments give an equal id."""
    event = {
        "specversion": "1.0",
        "type": kind,
        "source": f"/leitstand/{use_case}",
        "subject": subject,
        "time": at.isoformat(),
        "datacontenttype": "application/json",
        "data": dict(data),
    }
    return {"id": digest_json(event).removeprefix("sha256:"), **event}


def signature(secret: str, body: bytes) -> str:
    """``sha256=<hex>``: HMAC-SHA256 over the bytes of the body (RFC 2104); compare in constant time."""
    return "sha256=" + hmac.new(secret.encode(), body, hashlib.sha256).hexdigest()


class WebhookSink:
    """Posts each alert to one URL.

    Args:
        url: Of the receiver.
        secret: Key of the signature; empty: unsigned.
        timeout_s: For one attempt.
        attempts: Per delivery.
    """

    name = "webhook"

    def __init__(self, url: str, *, secret: str = "", timeout_s: float = 5.0, attempts: int = 3) -> None:
        self._url = checked_url(url, "alerts.webhook_url")
        self._secret = secret
        self._timeout_s = timeout_s
        self._attempts = attempts

    def send(self, alert: Alert) -> None:
        """Delivers ``leitstand.alert.raised`` or ``leitstand.alert.resolved`` with the alert as data."""
        kind = "leitstand.alert.resolved" if alert.resolved else "leitstand.alert.raised"
        at = (alert.resolved_at if alert.resolved else None) or alert.starts_at
        data = alert.model_dump(mode="json")
        self.send_event(cloud_event(kind, use_case=alert.use_case, subject=alert.key, at=at, data=data))

    def send_event(self, event: Mapping[str, Any]) -> None:
        """Posts any CloudEvent.

        Raises:
            TransientBackendError: Worth trying later.
            PermanentBackendError: The receiver refuses it.
        """
        body = canonical_json(event).encode()
        headers = {"content-type": CONTENT_TYPE}
        if self._secret:
            headers[SIGNATURE_HEADER] = signature(self._secret, body)
        post(
            self._url, body, name=self.name, headers=headers, timeout_s=self._timeout_s, attempts=self._attempts
        )  # fmt: skip
