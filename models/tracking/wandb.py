"""Experiment tracking on Weights & Biases: offline below `home` by default, online when a key is set.

What W&B cannot do offline (use, link or wait for artifacts) is not part of the port. Losing the tracker
never costs a training run: every later failure is logged once per run and passed over. Only a
configuration that cannot work stops a run, at its start.
"""

import re
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import structlog
import wandb
from filelock import FileLock
from wandb.errors import AuthenticationError, UsageError

from leitstand.errors import ConfigurationError
from leitstand.ports import ExperimentTracker
from leitstand.settings import Settings, apply_environment
from models.tracking.reading import LOCK_NAME, STEP, last_step
from models.tracking.runfile import has_ended

__all__ = ["CONFUSION_COLUMNS", "check_key", "open_tracker"]

CONFUSION_COLUMNS = ("label", "predicted", "count")
KEY_PATTERN = re.compile(r"(?:\w+-)?[\w-]{40,}|[\w-]+\.[\w-]+\.[\w-]+")
INIT_TIMEOUT_S = 20.0
FINISH_TIMEOUT_S = 30.0
FLUSH_S = 2.0  # what a kill can cost; W&B's own default is 15
SYSTEM_SAMPLING_S = 5.0


def open_tracker(settings: Settings) -> ExperimentTracker:
    """The tracker for these settings.

    Raises:
        ConfigurationError: The W&B key cannot be one.
    """
    check_key(settings)
    apply_environment(settings, prefix="WANDB_")
    wandb.setup(wandb.Settings(silent=True))
    return _WandbTracker(settings)


def check_key(settings: Settings) -> str | None:
    """The configured W&B key, or None when runs stay offline.

    Raises:
        ConfigurationError: The key does not look like one; its text is not repeated.
    """
    if settings.tracking.api_key is None or not settings.tracking.api_key.get_secret_value():
        return None
    key = settings.tracking.api_key.get_secret_value()
    if not KEY_PATTERN.fullmatch(key):
        raise ConfigurationError(
            f"the W&B key has {len(key)} characters and does not look like one",
            hint="copy it from https://wandb.ai/authorize into LEITSTAND_TRACKING__API_KEY, or unset it: offline",
        )
    return key


class _WandbTracker:
    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._key = check_key(settings)

    def start(
        self,
        *,
        use_case: str,
        job: str,
        config: Mapping[str, Any],
        tags: Sequence[str] = (),
        run_id: str | None = None,
    ) -> "_WandbRun":
        identity = run_id or secrets.token_hex(4)  # ours, so that an offline run after a failed start is the same run

        def init(mode: Literal["online", "offline"]) -> Any:
            self._settings.root.mkdir(parents=True, exist_ok=True)
            return wandb.init(
                project=self._settings.tracking.project,
                dir=self._settings.root,
                id=identity,
                resume="allow",
                reinit="create_new",
                group=use_case,
                job_type=job,
                config=dict(config),
                tags=list(tags),
                settings=self._wandb_settings(mode),
            )

        step = last_step(self._settings.root, run_id) if run_id else None
        try:
            run = init("online" if self._key else "offline")
        except Exception as error:  # no network must not cost the training run
            if _is_refusal(error):
                raise ConfigurationError(
                    f"W&B refused to start the run: {error}",
                    hint="check LEITSTAND_TRACKING__API_KEY and LEITSTAND_TRACKING__BASE_URL, or unset the key",
                ) from error
            structlog.get_logger().warning("tracking goes on offline", reason=_reason(error))
            run = _offline_or_none(init)
        return _WandbRun(run, run_id=identity, first_step=0 if step is None else step + 1)

    def _wandb_settings(self, mode: Literal["online", "offline"]) -> wandb.Settings:
        return wandb.Settings(
            mode=mode,
            api_key=self._key if mode == "online" else None,
            base_url=self._settings.tracking.base_url or "https://api.wandb.ai",
            console="off",
            silent=True,
            disable_git=True,
            disable_code=True,
            init_timeout=INIT_TIMEOUT_S,
            x_stats_sampling_interval=SYSTEM_SAMPLING_S,
            x_transaction_log_flush_interval=FLUSH_S,
        )


def _is_refusal(error: Exception) -> bool:
    """Whether configuration is at fault; a refused key comes as a plain CommError with the status in its text."""
    return isinstance(error, AuthenticationError | UsageError) or bool(re.search(r"error 40[13]\b", str(error)))


def _offline_or_none(init: Callable[[Literal["online", "offline"]], Any]) -> Any:
    try:
        wandb.teardown()  # W&B's service refuses an id that it still holds open, of a run that failed to start too
        return init("offline")
    except Exception as error:  # a full disk must not cost the training run either
        structlog.get_logger().warning("this run is not tracked", reason=_reason(error))
        return None


class _WandbRun:
    """One run; not safe to share between threads. `run` is None when not even an offline run could start."""

    def __init__(self, run: Any, *, run_id: str, first_step: int) -> None:
        self._run = run
        self._run_id = run_id
        self._artifacts: set[tuple[str, str]] = set()
        self._next_step = first_step
        self._warned = self._finished = run is None
        self._folder = Path(run.dir).parent if run is not None else None
        self._lock: FileLock | None = None
        self._guarded(self._prepare)

    def _prepare(self) -> None:
        """Marks the folder as in use and makes our step the axis of every curve.

        W&B's own ``_step`` restarts when a run is continued offline, so curves would overlap.
        """
        assert self._folder is not None  # noqa: S101
        self._lock = FileLock(self._folder / LOCK_NAME, thread_local=False)
        self._lock.acquire(timeout=1)
        self._run.define_metric(STEP, hidden=True)
        self._run.define_metric("*", step_metric=STEP)

    @property
    def run_id(self) -> str:
        return self._run_id

    @property
    def url(self) -> str:
        if self._run is None:
            return ""
        return str(self._folder) if self._run.offline else str(self._run.url)

    def log(self, metrics: Mapping[str, float], *, step: int | None = None) -> None:
        at = self._next_step if step is None else step
        self._next_step = max(self._next_step, at + 1)
        self._guarded(lambda: self._run.log({**metrics, STEP: at}))

    def log_table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Logs a table; one with the columns label, predicted, count also as W&B's confusion matrix chart."""

        def write() -> None:
            if tuple(columns) == CONFUSION_COLUMNS:
                content = _confusion_chart(rows)
            else:
                content = wandb.Table(list(columns), [list(row) for row in rows], allow_mixed_types=True)
            self._run.log({name: content, STEP: max(0, self._next_step - 1)})

        self._guarded(write)

    def log_artifact(self, name: str, kind: str, path: Path, metadata: Mapping[str, Any] | None = None) -> None:
        """Records a file or folder by reference to its place: keep it there until the run is synced."""

        def write() -> None:
            artifact = wandb.Artifact(name, kind, metadata=dict(metadata or {}))
            add = artifact.add_dir if path.is_dir() else artifact.add_file
            add(str(path), policy="immutable", skip_cache=True)
            if (name, artifact.digest) not in self._artifacts:
                self._run.log_artifact(artifact)
                self._artifacts.add((name, artifact.digest))

        self._guarded(write)

    def summary(self, values: Mapping[str, Any]) -> None:
        self._guarded(lambda: self._run.summary.update(dict(values)))

    def finish(self, *, failed: bool = False) -> None:
        if not self._finished:
            self._guarded(lambda: self._finish(exit_code=1 if failed else 0))
            self._finished = True
            if self._lock is not None:
                self._lock.release()

    def _finish(self, *, exit_code: int) -> None:
        """Ends the run and waits until its file says so: W&B's own `finish` returns before the file is written."""
        assert self._folder is not None  # noqa: S101
        self._run.finish(exit_code=exit_code)
        file = self._folder / f"run-{self._run_id}.wandb"
        pause, deadline = 0.01, time.monotonic() + FINISH_TIMEOUT_S
        while not has_ended(file):
            if time.monotonic() > deadline:
                raise TimeoutError(f"{file} was not complete {FINISH_TIMEOUT_S:.0f} s after the end of the run")
            time.sleep(pause)
            pause = min(2 * pause, 1.0)

    def _guarded(self, write: Callable[[], None]) -> None:
        if self._run is None or self._finished:
            return
        try:
            write()
        except Exception as error:  # nothing the tracker does is worth a training run
            if not self._warned:
                self._warned = True
                structlog.get_logger().warning(
                    "tracking lost something; training goes on", run_id=self._run_id, reason=_reason(error)
                )


def _confusion_chart(rows: Sequence[Sequence[Any]]) -> Any:
    table = wandb.Table(list(CONFUSION_COLUMNS), [[actual, guess, int(count)] for actual, guess, count in rows])
    label, predicted, count = CONFUSION_COLUMNS
    fields = {"Actual": label, "Predicted": predicted, "nPredictions": count}
    return wandb.plot_table("wandb/confusion_matrix/v1", table, fields, {"title": "Confusion matrix"})


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"
