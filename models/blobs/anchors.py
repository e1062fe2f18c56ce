"""Anchors of the audit trail on S3, under object lock: nobody can change or remove one before its time is over."""

from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

from botocore.exceptions import ClientError

from governance.audit.anchors import AnchorStore, FolderAnchors
from leitstand.errors import ConfigurationError, PermanentBackendError
from leitstand.settings import Settings
from leitstand.types import utc_now
from models.blobs.s3 import make_client, parse_uri
from models.blobs.s3_errors import translated

__all__ = ["S3Anchors", "open_anchors"]

TAKEN = {"PreconditionFailed", "ConditionalRequestConflict"}


class S3Anchors:
    """`AnchorStore` below a prefix of a bucket with object lock.

    Args:
        client: Of boto3.
        uri: ``s3://BUCKET/PREFIX``.
        mode: ``COMPLIANCE``, ``GOVERNANCE`` or empty: no lock.
        keep: How long an anchor is locked.
    """

    def __init__(self, client: Any, uri: str, *, mode: str, keep: timedelta) -> None:
        self._client = client
        self._uri = uri
        self._bucket, self._prefix = parse_uri(uri)
        self._mode, self._keep = mode, keep

    def put(self, name: str, content: bytes) -> bool:
        """See `AnchorStore.put`; checks that the server holds the lock that was asked for."""
        key = f"{self._prefix}/{name}" if self._prefix else name
        lock: dict[str, Any] = {}
        if self._mode:
            lock = {"ObjectLockMode": self._mode, "ObjectLockRetainUntilDate": utc_now() + self._keep}
        with translated(f"{self._uri}/{name}"):
            try:
                self._client.put_object(
                    Bucket=self._bucket, Key=key, Body=content, IfNoneMatch="*", ContentType="application/json",
                    ChecksumAlgorithm="SHA256", **lock,
                )  # fmt: skip
            except ClientError as error:
                if error.response["Error"]["Code"] in TAKEN:
                    return False
                raise
            if self._mode:
                self._check_lock(key)
        return True

    def read(self) -> Sequence[tuple[str, bytes]]:
        """See `AnchorStore.read`; every version counts, so that one written over an anchor hides nothing."""
        base = f"{self._prefix}/" if self._prefix else ""
        versions: dict[str, list[str]] = {}
        with translated(self._uri):
            pages = self._client.get_paginator("list_object_versions").paginate(Bucket=self._bucket, Prefix=base)
            for item in (item for page in pages for item in page.get("Versions", [])):
                versions.setdefault(item["Key"], []).append(item["VersionId"])
            return [
                (key.removeprefix(base) if len(ids) == 1 else f"{key.removeprefix(base)}.{each}.json",
                 self._content(key, each))
                for key, ids in sorted(versions.items()) for each in sorted(ids)
            ]  # fmt: skip

    def _content(self, key: str, version: str) -> bytes:
        more = {"VersionId": version} if version and version != "null" else {}
        return self._client.get_object(Bucket=self._bucket, Key=key, **more)["Body"].read()

    def _check_lock(self, key: str) -> None:
        """A server that does not know object lock may ignore it without a word."""
        head = self._client.head_object(Bucket=self._bucket, Key=key)
        if head.get("ObjectLockMode") != self._mode or head.get("ObjectLockRetainUntilDate") is None:
            raise PermanentBackendError(
                f"{self._uri} does not lock objects: the anchor is there, but can be changed",
                hint="make the bucket with object lock, or say so: LEITSTAND_AUDIT__ANCHOR_LOCK=off",
            )


def open_anchors(settings: Settings, place: str = "") -> AnchorStore:
    """The anchors at `place`, or where the settings say.

    Raises:
        ConfigurationError: No place is given, or it cannot be understood.
    """
    uri = place or settings.audit.anchors
    if not uri:
        raise ConfigurationError(
            "No place for anchors is set", hint="set LEITSTAND_AUDIT__ANCHORS to s3://BUCKET/PREFIX or a folder"
        )
    if uri.startswith("s3://"):
        mode = "" if settings.audit.anchor_lock == "off" else settings.audit.anchor_lock.upper()
        keep = timedelta(days=settings.audit.retention_days)
        return S3Anchors(make_client(settings.s3), uri.rstrip("/"), mode=mode, keep=keep)
    if "://" in uri and not uri.startswith("file://"):
        raise ConfigurationError(f"'{uri}' is not a place for anchors", hint="use a folder or s3://BUCKET/PREFIX")
    return FolderAnchors(Path(uri.removeprefix("file://")).expanduser().resolve())
