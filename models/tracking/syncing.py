"""Pushes offline runs to a W&B server with ``wandb sync``, each folder once.

W&B stores an artifact once per name and digest. On top of that, what was pushed is noted in
``wandb/synced.json`` by server, folder and digest of the run file, so a second sync sends nothing. Runs that
a living process still writes are left for later.
"""

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from leitstand.errors import ConfigurationError, PermanentBackendError, TransientBackendError, bounded
from leitstand.files import digest_file, write_text
from leitstand.settings import Settings, quiet_environment
from leitstand.types import utc_now
from models.tracking.reading import LoggedRun
from models.tracking.runfile import read_run_file
from models.tracking.wandb import check_key

__all__ = ["SyncReport", "sync_runs"]

TIMEOUT_S = 3600
CUT_SIGNS = ("the file ends with an incomplete record", "transactionlog: error getting next record")
GRAPHQL_RETRIES = 3  # 17 s without a server; the default waits for many minutes (and 0 means the default)
REFUSALS = ("401", "403", "permission denied", "invalid api key", "not authenticated")


@dataclass(frozen=True)
class SyncReport:
    """Folders by what became of them. In a dry run, `pushed` names what would be pushed."""

    pushed: tuple[Path, ...]
    already_there: tuple[Path, ...]
    still_running: tuple[Path, ...]


def sync_runs(settings: Settings, runs: Sequence[LoggedRun], *, dry_run: bool = False) -> SyncReport:
    """Pushes the offline folders of these runs that the server does not have yet, oldest first.

    Raises:
        ConfigurationError: No key is set, or the server refuses it.
        TransientBackendError: The server cannot be reached, or another sync is running.
        PermanentBackendError: W&B could not push a folder; those that were pushed are noted.
    """
    key = check_key(settings)
    if key is None and not dry_run:
        raise ConfigurationError(
            "no W&B key is configured, so there is nowhere to push runs to",
            hint="set LEITSTAND_TRACKING__API_KEY (and LEITSTAND_TRACKING__BASE_URL for a server of your own)",
        )
    store = settings.root / "wandb"
    store.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(store / "sync.lock", timeout=0):
            return _sync(settings, runs, key or "", dry_run=dry_run)
    except Timeout as error:
        raise TransientBackendError("another sync is running", hint="wait until it has ended") from error


def _sync(settings: Settings, runs: Sequence[LoggedRun], key: str, *, dry_run: bool) -> SyncReport:
    state = _State(settings)
    idle = [run for run in runs if run.state != "running"]
    offline = sorted(folder for run in idle for folder in run.folders if folder.name.startswith("offline-"))
    pending = [folder for folder in offline if not state.has(folder)]
    if pending and not dry_run:
        _push(settings, pending, key, state)
    return SyncReport(
        pushed=tuple(pending),
        already_there=tuple(folder for folder in offline if folder not in pending),
        still_running=tuple(folder for run in runs if run.state == "running" for folder in run.folders),
    )


def _push(settings: Settings, folders: Sequence[Path], key: str, state: "_State") -> None:
    for folder in folders:
        _marker(folder).unlink(missing_ok=True)
    # Before the push: what a killed process's helper still adds meanwhile makes another push necessary.
    digests = {folder: digest_file(_run_file(folder)) for folder in folders}
    output = _wandb_sync(settings, folders, key)
    there = [folder for folder in folders if _marker(folder).exists() or _is_cut(folder, output)]
    for folder in there:
        state.note(folder, digests[folder])
    missing = [folder.name for folder in folders if folder not in there]
    if not missing:
        return
    failure = output[-600:]
    if any(word in failure.lower() for word in REFUSALS):
        raise ConfigurationError(
            f"the W&B server at {state.server} refused the key", hint="check LEITSTAND_TRACKING__API_KEY"
        )
    kind = TransientBackendError if "connection" in failure or "deadline" in failure else PermanentBackendError
    raise kind(
        f"{len(missing)} of {len(folders)} run folders did not reach {state.server} ({bounded(missing)}): {failure}",
        hint="run `leitstand runs sync` again; what was pushed is not pushed twice",
    )


def _wandb_sync(settings: Settings, folders: Sequence[Path], key: str) -> str:
    """Runs W&B's own command and returns what it said; the marker files say what worked."""
    environment = quiet_environment(settings) | {
        "WANDB_API_KEY": key,
        "WANDB_BASE_URL": _server(settings),
        "WANDB_DIR": str(settings.root),
        "WANDB__GRAPHQL_RETRY_MAX": str(GRAPHQL_RETRIES),
    }
    command = [sys.executable, "-m", "wandb", "sync", "--include-synced", *map(str, folders)]
    try:
        done = subprocess.run(
            command, env=environment, cwd=settings.root, capture_output=True, text=True, timeout=TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired:
        return f"deadline of {TIMEOUT_S} s passed"
    return " ".join((done.stdout + done.stderr).split()).replace(key, "***")


def _is_cut(folder: Path, output: str) -> bool:
    """Whether W&B pushed all that can be read of a killed run's file, which it reports as an error.

    Depending on where the file ends it speaks of an incomplete record or of a wrong checksum, so the file itself
    must say that it is not damaged.
    """
    return any(sign in output for sign in CUT_SIGNS) and not read_run_file(_run_file(folder)).damaged


class _State:
    """``synced.json``: server, then folder name, then digest of the run file and time."""

    def __init__(self, settings: Settings) -> None:
        self.server = _server(settings)
        self._path = settings.root / "wandb" / "synced.json"
        self._servers: dict[str, dict[str, dict[str, Any]]] = {}
        if self._path.exists():
            self._servers = json.loads(self._path.read_text(encoding="utf-8"))

    def has(self, folder: Path) -> bool:
        """Whether the server has the folder as it is now; a push by hand with `wandb sync` counts too."""
        entries = {server: notes[folder.name] for server, notes in self._servers.items() if folder.name in notes}
        if not entries:
            return _marker(folder).exists()
        return entries.get(self.server, {}).get("digest") == digest_file(_run_file(folder))

    def note(self, folder: Path, digest: str) -> None:
        entry = {"digest": digest, "at": utc_now().isoformat(timespec="seconds")}
        self._servers.setdefault(self.server, {})[folder.name] = entry
        write_text(self._path, json.dumps(self._servers, indent=1, sort_keys=True))


def _server(settings: Settings) -> str:
    return settings.tracking.base_url or "https://api.wandb.ai"


def _run_file(folder: Path) -> Path:
    return next(folder.glob("*.wandb"))


def _marker(folder: Path) -> Path:
    """The empty file that ``wandb sync`` leaves beside a run file once the server has it all."""
    return _run_file(folder).with_suffix(".wandb.synced")
