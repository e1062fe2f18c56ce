"""Alerts as plain e-mail through an SMTP server; with STARTTLS unless the settings turn it off."""

import smtplib
import ssl
from email.message import EmailMessage
from email.utils import format_datetime

from tenacity import Retrying, retry_if_exception_type, stop_after_attempt, wait_random_exponential

from leitstand.errors import ConfigurationError, LeitstandError, PermanentBackendError, TransientBackendError
from leitstand.files import digest_json
from leitstand.settings import SmtpSettings
from leitstand.types import Alert, Severity

__all__ = ["SmtpSink"]

_PRIORITY = {Severity.INFO: "5 (Lowest)", Severity.WARNING: "3 (Normal)", Severity.CRITICAL: "1 (Highest)"}
_PERMANENT = 500


class SmtpSink:
    """Sends each alert to all recipients in one mail.

    Args:
        settings: Server, sender and recipients.
        timeout_s: For each step of the conversation.
        attempts: Per delivery.
        tls: Trust for STARTTLS; None: the system's.
    """

    name = "e-mail"

    def __init__(
        self, settings: SmtpSettings, *, timeout_s: float = 5.0, attempts: int = 3, tls: ssl.SSLContext | None = None
    ) -> None:
        if not settings.recipients:
            raise ConfigurationError(
                "alerts.smtp has a host and no recipients",
                hint='set LEITSTAND_ALERTS__SMTP__RECIPIENTS=["a@b.example"]',
            )
        self._settings = settings
        self._timeout_s = timeout_s
        self._attempts = attempts
        self._tls = tls

    def send(self, alert: Alert) -> None:
        """Hands the mail to the server; returns when it accepted responsibility for at least one recipient."""
        retrying = Retrying(
            stop=stop_after_attempt(self._attempts),
            wait=wait_random_exponential(multiplier=0.1, max=2),
            retry=retry_if_exception_type(TransientBackendError),
            reraise=True,
        )
        retrying(self._send_once, _mail(alert, self._settings))

    def _send_once(self, mail: EmailMessage) -> None:
        settings = self._settings
        try:
            with smtplib.SMTP(settings.host, settings.port, timeout=self._timeout_s) as server:
                if settings.starttls:
                    server.starttls(context=self._tls or ssl.create_default_context())
                if settings.user:
                    password = settings.password.get_secret_value() if settings.password else ""
                    server.login(settings.user, password)
                server.send_message(mail)
        except (smtplib.SMTPException, OSError) as error:
            raise _translated(error, f"{settings.host}:{settings.port}") from error


def _mail(alert: Alert, settings: SmtpSettings) -> EmailMessage:
    mail = EmailMessage()
    state = "resolved" if alert.resolved else alert.severity.value
    mail["Subject"] = " ".join(f"[{state}] {alert.title} ({alert.use_case})".split())
    mail["From"] = settings.sender
    mail["To"] = ", ".join(settings.recipients)
    mail["Date"] = format_datetime((alert.resolved_at if alert.resolved else None) or alert.starts_at)
    mail["Message-ID"] = f"<{_name(alert.model_dump(mode='json'))}@leitstand>"
    thread = f"<{_name([alert.key, alert.starts_at.isoformat()])}@leitstand>"  # keeps the mails of one trouble together
    mail["References"] = thread
    mail["X-Priority"] = _PRIORITY[alert.severity]
    mail["Auto-Submitted"] = "auto-generated"
    lines = [alert.body, "", f"Since {alert.starts_at:%Y-%m-%d %H:%M} UTC; notification {alert.notification}."]
    if alert.runbook:
        lines.append(f"Runbook: {alert.runbook}")
    mail.set_content("\n".join(lines) + "\n")
    return mail


def _name(value: object) -> str:
    return digest_json(value).removeprefix("sha256:")[:32]


def _translated(error: Exception, server: str) -> LeitstandError:
    said = f"The mail server {server} did not take an alert: {type(error).__name__}"
    if isinstance(error, smtplib.SMTPResponseException):
        code, text = error.smtp_code, error.smtp_error
        said += f" {code} {text.decode(errors='replace') if isinstance(text, bytes) else text}"
        permanent = code >= _PERMANENT
    elif isinstance(error, smtplib.SMTPRecipientsRefused):
        codes = [code for code, _ in error.recipients.values()]
        said += f" {', '.join(map(str, codes))}"
        permanent = all(code >= _PERMANENT for code in codes)
    else:
        permanent = isinstance(error, smtplib.SMTPNotSupportedError | ssl.SSLError)
    if permanent:
        return PermanentBackendError(said, hint="check user, password, sender and recipients in alerts.smtp")
    return TransientBackendError(said)
