"""Builds the registry that the settings ask for."""

from leitstand.ports import ModelRegistry
from leitstand.settings import Settings
from models.blobs.opening import open_location
from models.ledger import open_ledger

__all__ = ["open_registry"]


def open_registry(settings: Settings) -> ModelRegistry:
    """MLflow on SQLite and a local folder, unless ``settings.registry`` says otherwise. Connects on first use.

    Raises:
        ConfigurationError: W&B is asked for without a key, or the artifact location has an unknown scheme.
        MissingExtraError: The registry's library is not installed.
    """
    home = settings.root / "registry"
    if settings.registry.kind == "wandb":
        from models.registry.wandb import WandbRegistry  # noqa: PLC0415  -- beside its sibling

        return WandbRegistry.connect(settings, open_ledger(settings), home)
    from models.registry.mlflow import MlflowRegistry  # noqa: PLC0415

    database = settings.root / "mlflow" / "registry.db"
    location = settings.registry.artifacts or str(settings.root / "mlflow" / "artifacts")
    if not settings.registry.uri:
        database.parent.mkdir(parents=True, exist_ok=True)
    uri = settings.registry.uri or f"sqlite:///{database}"
    return MlflowRegistry(uri, open_location(location, settings.s3), location, open_ledger(settings), home)
