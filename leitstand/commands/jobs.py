"""`leitstand jobs …`: the request queue from the command line, for those who run it."""

import asyncio
import dataclasses
import json
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, TypeVar

import typer

from leitstand.commands.output import print_table
from leitstand.errors import NotFoundError
from leitstand.settings import load_settings

if TYPE_CHECKING:
    from services.jobs.queue import JobQueue
    from services.jobs.records import JobStatus

__all__ = ["app"]

app = typer.Typer(add_completion=False, no_args_is_help=True, rich_markup_mode=None)

JSON = typer.Option(False, "--json", help="Print JSON.")
T = TypeVar("T")
LIMIT = typer.Option(50, min=1, max=1000, help="How many, newest first.")


@app.command("list")
def list_jobs(limit: int = LIMIT, as_json: bool = JSON) -> None:
    """List jobs, newest first."""
    _show(_ask(lambda queue: queue.jobs(limit)), as_json)


@app.command("dead")
def dead(limit: int = LIMIT, as_json: bool = JSON) -> None:
    """List dead letters: jobs that failed for good."""
    _show(_ask(lambda queue: queue.jobs(limit, dead=True)), as_json)


@app.command("show")
def show(job_id: str = typer.Argument(help="Id of the job."), as_json: bool = JSON) -> None:
    """Show everything about a job but its texts."""
    status = _ask(lambda queue: queue.status(job_id))
    if status is None:
        raise NotFoundError(f"No job {job_id}", hint="list jobs with `leitstand jobs list`")
    said = _plain(status)
    if as_json:
        typer.echo(json.dumps(said, indent=1))
    else:
        print_table(["what", "value"], [[name, str(value)] for name, value in said.items() if value not in (None, "")])


@app.command("cancel")
def cancel(job_id: str = typer.Argument(help="Id of the job.")) -> None:
    """Cancel a job; one that runs stops at its next chunk."""
    typer.echo(_ask(lambda queue: queue.cancel(job_id)))


@app.command("erase")
def erase(job_id: str = typer.Argument(help="Id of the job.")) -> None:
    """Forget an ended job, with its texts and answers, before its time."""
    _ask(lambda queue: queue.erase(job_id))
    typer.echo("erased")


@app.command("replay")
def replay(
    job_ids: list[str] = typer.Argument(None, metavar="[ID]...", help="Ids of dead letters."),
    everything: bool = typer.Option(False, "--all", help="Replay every dead letter."),
    code: str = typer.Option("", help="With --all: only those with this error code."),
    dry_run: bool = typer.Option(False, "--dry-run", help="Only print what would be replayed."),
) -> None:
    """Let dead letters wait for a worker again. What was answered stays answered."""
    if everything == bool(job_ids):
        raise typer.BadParameter("give ids, or --all")

    async def run(queue: "JobQueue") -> list[str]:
        found = [each for each in await queue.jobs(10_000, dead=True) if code in ("", each.error_code)]
        wanted = [each.id for each in found] if everything else list(job_ids)
        for job_id in wanted if not dry_run else []:
            await queue.replay(job_id)
        return wanted

    for job_id in _ask(run):
        typer.echo(job_id)


def _ask(what: "Callable[[JobQueue], Awaitable[T]]") -> T:
    from services.jobs.opening import need_job_queue

    async def run() -> T:
        queue = need_job_queue(load_settings())
        try:
            return await what(queue)
        finally:
            await queue.close()

    return asyncio.run(run())


def _show(jobs: "list[JobStatus]", as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps([_plain(job) for job in jobs], indent=1))
        return
    if not jobs:
        typer.echo("None.", err=True)
        return
    print_table(
        ["id", "use case", "tenant", "state", "texts", "attempts", "created", "error"],
        [
            [j.id, j.use_case, j.tenant, j.state, f"{j.texts_done}/{j.texts}", str(j.attempts),
             f"{j.created_at:%Y-%m-%d %H:%M:%S}", j.error_code]
            for j in jobs
        ],
    )  # fmt: skip


def _plain(status: "JobStatus") -> dict[str, Any]:
    said = dataclasses.asdict(status)
    return {name: value.isoformat() if hasattr(value, "isoformat") else value for name, value in said.items()}
