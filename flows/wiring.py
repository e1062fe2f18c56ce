"""The composition root of batch work: settings in, adapters out. Nothing else chooses an adapter."""

import functools
import subprocess
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

from flows.rollout_store import RolloutStore, open_rollout_store
from governance.lineage import Lineage, open_lineage
from governance.routes.opening import open_route_store
from leitstand.ports import ExperimentTracker, ModelRegistry, RouteStore
from leitstand.settings import Settings, apply_environment, load_settings
from leitstand.usecase import UseCase, find, load
from models.registry.opening import open_registry
from models.tracking.wandb import open_tracker

__all__ = ["Adapters", "code_commit", "wire"]


@dataclass(frozen=True, kw_only=True)
class Adapters:
    """What every stage of the lifecycle is handed."""

    settings: Settings
    registry: ModelRegistry
    tracker: ExperimentTracker
    lineage: Lineage
    routes: RouteStore
    rollouts: RolloutStore
    commit: str

    @property
    def home(self) -> Path:
        """The folder of everything that runs leave behind, absolute."""
        return self.settings.root

    def use_case(self, name: str) -> UseCase:
        """Reads the use case `name`."""
        return load(find(name, self.settings.usecases))

    def lock(self, name: str) -> FileLock:
        """A lock between processes; two lifecycles that want the same thing take turns."""
        folder = self.home / "locks"
        folder.mkdir(parents=True, exist_ok=True)
        return FileLock(folder / f"{name.replace('/', '-').replace(':', '-')}.lock")


@functools.cache
def wire() -> Adapters:
    """Builds the adapters from the environment, once per process."""
    settings = load_settings()
    apply_environment(settings)
    commit = code_commit()
    return Adapters(
        settings=settings,
        registry=open_registry(settings),
        tracker=open_tracker(settings),
        lineage=open_lineage(settings, commit=commit),
        routes=open_route_store(settings),
        rollouts=open_rollout_store(settings),
        commit=commit,
    )


def code_commit() -> str:
    """The git commit of the code, with `-dirty` when files differ from it; `unknown` outside a checkout."""
    root = Path(__file__).parent.parent
    try:
        head = _git(root, "rev-parse", "HEAD")
        return head + ("-dirty" if _git(root, "status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _git(root: Path, *arguments: str) -> str:
    return subprocess.run(
        ["git", "-C", str(root), *arguments],  # noqa: S607 -- git is found on PATH on purpose
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
