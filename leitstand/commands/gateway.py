"""`leitstand gateway`: the process that routes requests to model versions."""

import typer

from leitstand.errors import ConfigurationError
from leitstand.events import RotatingLog, configure_logging
from leitstand.settings import Settings, apply_environment, load_settings

__all__ = ["app"]

app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.command("gateway")
def gateway(
    host: str = typer.Option("", help="Address to bind to; default: LEITSTAND_GATEWAY__HOST."),
    port: int = typer.Option(0, min=0, max=65535, help="Port; default: LEITSTAND_GATEWAY__PORT."),
) -> None:
    """Run the gateway until SIGTERM; requests in flight are answered first. `up` starts it by itself."""
    from flows.supervisor import port_is_free
    from services.gateway import serve
    from services.gateway_wiring import wire

    settings = load_settings()
    changes = {name: value for name, value in (("host", host), ("port", port)) if value}
    settings = settings.model_copy(update={"gateway": settings.gateway.model_copy(update=changes)})
    apply_environment(settings)
    configure_logging(settings.log_level, _log_file(settings), style=settings.log_format, libraries=True)
    chosen = settings.gateway
    if not port_is_free(chosen.host, chosen.port):
        raise ConfigurationError(
            f"Port {chosen.port} is taken by another program",
            hint="stop that program, or choose another port with --port or LEITSTAND_GATEWAY__PORT",
        )
    scheme = "https" if settings.tls.cert else "http"
    typer.echo(f"Gateway on {scheme}://{chosen.host}:{chosen.port}", err=True)
    serve(wire(settings))


def _log_file(settings: Settings) -> RotatingLog | None:
    if not settings.log_file:
        return None
    size = settings.log_file_mb * 10**6
    return RotatingLog(settings.root / settings.log_file, max_bytes=size, backups=settings.log_file_backups)
