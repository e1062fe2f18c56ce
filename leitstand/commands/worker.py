"""`leitstand worker`: the process that answers the jobs of the request queue."""

import asyncio
import signal

import typer

from leitstand.events import configure_logging
from leitstand.settings import Settings, apply_environment, load_settings

__all__ = ["app"]

app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.command("worker")
def worker(
    use_cases: list[str] = typer.Argument(None, metavar="[USE_CASE]...", help="Whose jobs; none: those of all."),
    concurrency: int = typer.Option(0, min=0, help="Jobs at once; default: LEITSTAND_JOBS__CONCURRENCY."),
) -> None:
    """Answer jobs until SIGTERM; what runs is then given back at its next chunk. `up` starts one by itself."""
    settings = load_settings()
    apply_environment(settings)
    configure_logging(settings.log_level, style=settings.log_format, libraries=True)
    asyncio.run(_work(settings, use_cases or [], concurrency or settings.jobs.concurrency))


async def _work(settings: Settings, use_cases: list[str], concurrency: int) -> None:
    from prometheus_client import start_http_server

    from services.gateway_lifetime import opened
    from services.gateway_wiring import wire
    from services.jobs.failures import Backoff
    from services.jobs.opening import need_job_queue, queue_uri
    from services.jobs.running import Attempt
    from services.jobs.worker import Worker
    from services.policies import admit_everything

    if not queue_uri(settings):
        need_job_queue(settings)
    chosen = settings.jobs
    gateway = wire(settings, authenticate=admit_everything)
    queue = gateway.jobs or need_job_queue(settings)
    backoff = Backoff(chosen.backoff_s, chosen.max_backoff_s)
    attempt = Attempt(gateway.inference, queue, deadline_s=settings.gateway.deadline_s, backoff=backoff)
    working = Worker(
        queue, attempt, use_cases=use_cases, concurrency=concurrency, lease_s=chosen.lease_s, poll_s=chosen.poll_s,
        drain_s=settings.serving.drain_s,
    )  # fmt: skip
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, working.stop)
    if chosen.metrics_port:
        start_http_server(chosen.metrics_port, addr="127.0.0.1")
    async with opened(gateway):
        await _warn(queue)
        typer.echo(f"Worker {working.name} takes jobs from {queue.where}", err=True)
        await working.run()


async def _warn(queue: object) -> None:
    """Says what this Redis may lose, once, when it can be asked."""
    from leitstand.errors import LeitstandError
    from services.jobs.queue import JobQueue

    assert isinstance(queue, JobQueue)  # noqa: S101 -- imported late
    try:
        for loss in await queue.durability():
            typer.secho(f"Warning: {queue.where}: {loss}", err=True, fg="yellow")
    except LeitstandError as error:
        typer.secho(f"Warning: {error.message}", err=True, fg="yellow")
