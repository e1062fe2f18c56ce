"""The sinks that the settings name."""

from leitstand.ports import AlertSink
from leitstand.settings import AlertSettings
from monitors.sinks.alertmanager import AlertmanagerSink
from monitors.sinks.slack import SlackSink
from monitors.sinks.smtp import SmtpSink
from monitors.sinks.webhook import WebhookSink

__all__ = ["open_sinks"]


def open_sinks(settings: AlertSettings) -> tuple[AlertSink, ...]:
    """One sink per address that is set; none of them connects yet.

    Raises:
        ConfigurationError: An address is none.
    """
    timeout_s, attempts = settings.timeout_s, settings.attempts
    sinks: list[AlertSink] = []
    if settings.webhook_url:
        secret = settings.webhook_secret.get_secret_value() if settings.webhook_secret else ""
        sinks.append(WebhookSink(settings.webhook_url, secret=secret, timeout_s=timeout_s, attempts=attempts))
    if settings.slack_url:
        sinks.append(SlackSink(settings.slack_url.get_secret_value(), timeout_s=timeout_s, attempts=attempts))
    if settings.alertmanager_url:
        hold = settings.repeat_after * 1.5
        sinks.append(AlertmanagerSink(settings.alertmanager_url, hold=hold, timeout_s=timeout_s, attempts=attempts))
    if settings.smtp.host:
        sinks.append(SmtpSink(settings.smtp, timeout_s=timeout_s, attempts=attempts))
    return tuple(sinks)
