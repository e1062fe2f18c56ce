"""Blobs in S3, or any server that speaks its API, through boto3.

Every object carries the SHA-256 of its bytes as metadata, and S3 checks one while it receives them.
Credentials come from boto3's usual chain. Import this module where S3 is used, not before: boto3 takes 0.3 s.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
from botocore.config import Config
from botocore.exceptions import ClientError

from leitstand.errors import ConfigurationError, NotFoundError
from leitstand.files import digest_file
from leitstand.settings import S3Settings
from models.blobs import transfer
from models.blobs.s3_errors import translated

__all__ = ["S3BlobStore", "make_client", "parse_uri"]

CONNECT_TIMEOUT_S = 5
READ_TIMEOUT_S = 60


def parse_uri(uri: str) -> tuple[str, str]:
    """Splits ``s3://bucket/a/b`` into bucket and key (``a/b``; empty when there is none).

    Raises:
        ConfigurationError: It is not an s3:// URI with a bucket.
    """
    scheme, _, rest = uri.partition("://")
    bucket, _, key = rest.partition("/")
    if scheme != "s3" or not bucket:
        raise ConfigurationError(f"'{uri}' is not an S3 location", hint="write s3://BUCKET/PREFIX")
    return bucket, key.strip("/")


def make_client(settings: S3Settings) -> Any:
    """A thread-safe boto3 client with time-outs and retries; path-style addresses on servers other than AWS.

    Its own session, because boto3's default one keeps the first credentials it saw.
    """
    config = Config(
        connect_timeout=CONNECT_TIMEOUT_S,
        read_timeout=READ_TIMEOUT_S,
        retries={"mode": "standard", "max_attempts": 4},
        s3={"addressing_style": "path" if settings.endpoint_url else "auto"},
    )
    with translated(settings.endpoint_url or "S3"):
        return boto3.Session().client(
            "s3", endpoint_url=settings.endpoint_url or None, region_name=settings.region, config=config
        )


class S3BlobStore:
    """`BlobStore` below one prefix of one bucket. Safe with threads and processes."""

    def __init__(self, uri: str, settings: S3Settings) -> None:
        self._bucket, self._prefix = parse_uri(uri)
        self._settings = settings
        self._client = make_client(settings)

    def put_file(self, key: str, source: Path) -> str:
        digest = digest_file(source)
        with translated(self._uri(key)):
            if self._stored_digest(key) != digest:
                transfer.upload(
                    self._client, self._bucket, self._key(key), source,
                    digest=digest, part_bytes=self._settings.multipart_bytes,
                )  # fmt: skip
        return digest

    def get_file(self, key: str, target: Path) -> str:
        with translated(self._uri(key)):
            return transfer.download(self._client, self._bucket, self._key(key), target)

    def exists(self, key: str) -> bool:
        try:
            with translated(self._uri(key)):
                self._client.head_object(Bucket=self._bucket, Key=self._key(key))
        except NotFoundError:
            return False
        return True

    def list(self, prefix: str = "") -> Iterator[str]:
        base = f"{self._prefix}/" if self._prefix else ""
        with translated(self._uri(prefix)):
            pages = self._client.get_paginator("list_objects_v2").paginate(Bucket=self._bucket, Prefix=base + prefix)
            keys = [item["Key"].removeprefix(base) for page in pages for item in page.get("Contents", [])]
        return iter(sorted(keys))

    def delete(self, key: str) -> None:
        with translated(self._uri(key)):
            self._client.delete_object(Bucket=self._bucket, Key=self._key(key))

    def same(self, key: str, path: Path) -> bool:
        """Whether `path` holds the bytes stored under `key`, judged by the stored digest alone."""
        with translated(self._uri(key)):
            return path.is_file() and self._stored_digest(key) == digest_file(path)

    def _stored_digest(self, key: str) -> str | None:
        try:
            head = self._client.head_object(Bucket=self._bucket, Key=self._key(key))
        except ClientError as error:
            if error.response["ResponseMetadata"]["HTTPStatusCode"] == 404:  # noqa: PLR2004
                return None
            raise
        return f"sha256:{head['Metadata'].get('sha256')}"

    def _key(self, key: str) -> str:
        return f"{self._prefix}/{key}" if self._prefix else key

    def _uri(self, key: str) -> str:
        return f"s3://{self._bucket}/{self._key(key)}"
