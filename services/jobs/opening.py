"""From settings to the job queue, for the gateway, the workers and the command line."""

from leitstand.errors import ConfigurationError
from leitstand.settings import Settings
from services.jobs.queue import JobQueue
from services.jobs.records import JobLimits
from services.jobs.sealing import Seal, key_from_file

__all__ = ["job_queue", "need_job_queue", "queue_uri"]

HINT = "set LEITSTAND_JOBS__REDIS_URI=redis://host:6379/0 for the gateway and the workers"


def queue_uri(settings: Settings) -> str:
    """Where the queue is: its own setting, or the Redis of the route tables, or empty: nowhere."""
    shared = settings.gateway.routes_uri
    return settings.jobs.redis_uri or (shared if shared.startswith(("redis://", "rediss://")) else "")


def job_queue(settings: Settings) -> JobQueue | None:
    """The queue, or None when no Redis is configured. Nothing is connected yet.

    Raises:
        ConfigurationError: The address or the key cannot be understood.
    """
    uri = queue_uri(settings)
    if not uri:
        return None
    chosen = settings.jobs
    own = chosen.key.get_secret_value().encode() if chosen.key else key_from_file(settings.root / "jobs" / "key")
    seal = Seal([own, *(key.get_secret_value().encode() for key in chosen.old_keys)])
    limits = JobLimits(
        max_open=chosen.max_open,
        max_open_per_tenant=chosen.max_open_per_tenant,
        max_bytes=chosen.max_bytes,
        max_attempts=chosen.max_attempts,
        max_age_s=chosen.max_age.total_seconds(),
        result_ttl_s=chosen.result_ttl.total_seconds(),
        dead_ttl_s=chosen.dead_ttl.total_seconds(),
    )
    return JobQueue(uri, seal, limits)


def need_job_queue(settings: Settings) -> JobQueue:
    """The queue.

    Raises:
        ConfigurationError: None is configured, or the configuration cannot be understood.
    """
    queue = job_queue(settings)
    if queue is None:
        raise ConfigurationError("There is no job queue: no Redis is configured", hint=HINT)
    return queue
