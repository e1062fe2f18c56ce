"""Brings a file or folder from where a use case says it is (`s3://` or a path) to where a job needs it."""

import shutil
from pathlib import Path

from leitstand.errors import ConfigurationError, NotFoundError
from leitstand.files import atomic_dir, atomic_path
from leitstand.settings import S3Settings

__all__ = ["fetch_file", "fetch_folder"]


def fetch_file(uri: str, target: Path, s3: S3Settings) -> Path:
    """Copies one file to `target` atomically and returns `target`; an S3 download resumes after a kill.

    Raises:
        NotFoundError: There is no such object or file.
        ConfigurationError: The URI has a scheme other than s3://.
    """
    if uri.startswith("s3://"):
        from models.blobs.s3 import S3BlobStore, parse_uri  # noqa: PLC0415  -- boto3 only where S3 is used

        bucket, key = parse_uri(uri)
        if not key:
            raise ConfigurationError(f"'{uri}' names a bucket, not a file", hint="write s3://BUCKET/PATH/FILE")
        S3BlobStore(f"s3://{bucket}", s3).get_file(key, target)
        return target
    source = _local(uri)
    if not source.is_file():
        raise NotFoundError(f"No file {source}", hint="correct the path; relative paths start at the use case's folder")
    with atomic_path(target) as part:
        shutil.copyfile(source, part)
    return target


def fetch_folder(uri: str, target: Path, s3: S3Settings) -> Path:
    """Copies every file below a folder or prefix into `target` and returns `target`.

    `target` appears complete or not at all, and replaces what was there. Files of an S3 prefix that an
    earlier, killed attempt fetched are not fetched again.

    Raises:
        NotFoundError: There is no such folder, or nothing lies below the prefix.
        ConfigurationError: The URI has a scheme other than s3://.
    """
    if uri.startswith("s3://"):
        return _fetch_prefix(uri, target, s3)
    source = _local(uri)
    if not source.is_dir():
        raise NotFoundError(f"No folder {source}", hint="correct the path")
    with atomic_dir(target) as part:
        shutil.copytree(source, part, dirs_exist_ok=True)
    return target


def _fetch_prefix(uri: str, target: Path, s3: S3Settings) -> Path:
    from models.blobs.s3 import S3BlobStore  # noqa: PLC0415  -- boto3 only where S3 is used

    store = S3BlobStore(uri.rstrip("/"), s3)
    keys = [key for key in store.list() if not key.endswith("/")]
    if not keys:
        raise NotFoundError(f"Nothing lies below {uri}", hint="list the bucket, or correct the prefix")
    staging = target.with_name(f".{target.name}.fetching")
    for key in keys:
        if not store.same(key, staging / key):
            store.get_file(key, staging / key)
    with atomic_dir(target) as part:
        for key in keys:
            (part / key).parent.mkdir(parents=True, exist_ok=True)
            (staging / key).replace(part / key)
    shutil.rmtree(staging, ignore_errors=True)
    return target


def _local(uri: str) -> Path:
    scheme, separator, rest = uri.partition("://")
    if not separator:
        return Path(uri).expanduser()
    if scheme == "file":
        return Path(rest)
    raise ConfigurationError(f"'{uri}' has the scheme '{scheme}'", hint="use a path, file:// or s3://")
