"""Alerts as messages of a Slack-compatible incoming webhook (Slack, Mattermost, Rocket.Chat, Discord's ``/slack``).

Only `text` and one attachment are used: what all of them show. The URL is a secret and appears in no message.
"""

from leitstand.files import canonical_json
from leitstand.types import Alert, Severity
from monitors.sinks.http import checked_url, post

__all__ = ["SlackSink"]

_COLOURS = {Severity.INFO: "#5a7fb5", Severity.WARNING: "#c98a1b", Severity.CRITICAL: "#b3261e"}
_RESOLVED = "#3b8651"
_LONGEST = 2900
"""Characters; Slack cuts a text block at 3,000."""


class SlackSink:
    """Posts each alert to one channel.

    Args:
        url: Of the incoming webhook.
        timeout_s: For one attempt.
        attempts: Per delivery.
    """

    name = "slack"

    def __init__(self, url: str, *, timeout_s: float = 5.0, attempts: int = 3) -> None:
        self._url = checked_url(url, "alerts.slack_url")
        self._timeout_s = timeout_s
        self._attempts = attempts

    def send(self, alert: Alert) -> None:
        """Posts a title line, the body and the runbook."""
        state = "resolved" if alert.resolved else alert.severity.value
        title = f"[{state}] {_plain(alert.title)} ({_plain(alert.use_case)})"
        body = _plain(alert.body)[:_LONGEST]
        message = {
            "text": title,
            "attachments": [
                {
                    "fallback": title,
                    "color": _RESOLVED if alert.resolved else _COLOURS[alert.severity],
                    "text": f"{body}\nRunbook: {_plain(alert.runbook)}" if alert.runbook else body,
                }
            ],
        }
        post(
            self._url, canonical_json(message).encode(), name=self.name,
            headers={"content-type": "application/json; charset=utf-8"},
            timeout_s=self._timeout_s, attempts=self._attempts,
        )  # fmt: skip


def _plain(text: str) -> str:
    """Slack's three control characters, escaped, so that no alert can mention a channel or hide a link."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
