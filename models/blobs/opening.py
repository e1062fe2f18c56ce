"""Chooses the blob store that the settings ask for."""

from pathlib import Path

from leitstand.errors import ConfigurationError
from leitstand.ports import BlobStore
from leitstand.settings import S3Settings, Settings

__all__ = ["open_blobs", "open_location"]


def open_blobs(settings: Settings) -> BlobStore:
    """The store of ``settings.blobs.uri``; without one, a folder below `home`."""
    return open_location(settings.blobs.uri or str(settings.root / "blobs"), settings.s3)


def open_location(uri: str, s3: S3Settings) -> BlobStore:
    """The store at an ``s3://`` prefix or in a folder.

    Raises:
        ConfigurationError: The URI has another scheme.
    """
    if uri.startswith("s3://"):
        from models.blobs.s3 import S3BlobStore  # noqa: PLC0415  -- boto3 only where S3 is used

        return S3BlobStore(uri.rstrip("/"), s3)
    if "://" in uri and not uri.startswith("file://"):
        raise ConfigurationError(f"'{uri}' is not a place for blobs", hint="use a folder or s3://BUCKET/PREFIX")
    from models.blobs.filesystem import FilesystemBlobStore  # noqa: PLC0415  -- beside its sibling

    return FilesystemBlobStore(Path(uri.removeprefix("file://")).expanduser().resolve())
