"""Who watches the gateway's requests: the access log and the traces, where the settings ask for them."""

from leitstand.errors import MissingExtraError
from leitstand.settings import Settings
from services.access_log import AccessLog
from services.observing import Watcher
from services.policies import Policies
from services.upstreams import Upstreams

__all__ = ["watch"]


def watch(settings: Settings, policies: Policies, upstreams: Upstreams) -> tuple[Policies, tuple[Watcher, ...]]:
    """The policies, each with a span where traces are on, and the watchers, tracing first. Tells `upstreams` too.

    Raises:
        MissingExtraError: Traces are asked for, but OpenTelemetry is not installed.
    """
    chosen = settings.telemetry
    watchers: list[Watcher] = []
    if chosen.traces_url:
        try:
            from services.tracing import Tracing  # noqa: PLC0415 -- half a second that only traces need
        except ImportError as error:
            raise MissingExtraError(
                "Traces need OpenTelemetry",
                hint="pip install 'leitstand[traces]', or unset LEITSTAND_TELEMETRY__TRACES_URL",
            ) from error
        tracing = Tracing(chosen, settings.environment)
        upstreams.trace_configs.append(tracing.calls())
        policies = tracing.policies(policies)
        watchers.append(tracing)
    if chosen.access_log != "off":
        key = settings.gateway.subject_key
        secret = key.get_secret_value().encode() if key else b""
        watchers.append(AccessLog(chosen.access_log, ratio=chosen.access_log_ratio, tenant_key=secret))
    return policies, tuple(watchers)
