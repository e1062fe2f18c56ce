"""Moves one file to or from S3 so that a broken transfer goes on where it stopped.

boto3's own transfer manager starts over after a kill, and model weights are large: upload goes through an
explicit multipart upload whose finished parts are kept, download through ranges into a ``.part`` file.
Errors of botocore pass through untranslated; `models.blobs.s3` maps them.
"""

import base64
import fcntl
import hashlib
import os
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from botocore import exceptions as aws

from leitstand.errors import IntegrityError
from leitstand.files import digest_file

__all__ = ["download", "upload"]

BLOCK = 2**20
PARALLEL_PARTS = 4
STREAM_ATTEMPTS = 5
CHANGED = 412


def upload(client: Any, bucket: str, key: str, source: Path, *, digest: str, part_bytes: int) -> None:
    """Stores `source` under `key` with its digest as metadata; S3 checks a SHA-256 of what it receives.

    An unfinished upload is continued only when the key names the digest: then its parts cannot belong to
    other content. Under any other key it is removed when it fails.
    """
    metadata = {"sha256": digest.removeprefix("sha256:")}
    if source.stat().st_size <= part_bytes:
        checksum = base64.b64encode(bytes.fromhex(metadata["sha256"])).decode()
        with source.open("rb") as body:
            client.put_object(
                Bucket=bucket,
                Key=key,
                Body=body,
                Metadata=metadata,
                ChecksumAlgorithm="SHA256",
                ChecksumSHA256=checksum,
            )
        return
    resumable = metadata["sha256"] in key
    upload_id = (_unfinished(client, bucket, key) if resumable else None) or client.create_multipart_upload(
        Bucket=bucket, Key=key, Metadata=metadata, ChecksumAlgorithm="SHA256"
    )["UploadId"]
    target = {"Bucket": bucket, "Key": key, "UploadId": upload_id}
    try:
        parts = _upload_parts(client, target, source, part_bytes)
        client.complete_multipart_upload(**target, MultipartUpload={"Parts": parts})
    except BaseException:
        if not resumable:
            client.abort_multipart_upload(**target)
        raise


def _unfinished(client: Any, bucket: str, key: str) -> str | None:
    """The newest unfinished upload of `key`, if any."""
    uploads = client.list_multipart_uploads(Bucket=bucket, Prefix=key).get("Uploads", [])
    mine = sorted((item for item in uploads if item["Key"] == key), key=lambda item: item["Initiated"])
    return mine[-1]["UploadId"] if mine else None


def _upload_parts(client: Any, target: dict[str, str], source: Path, part_bytes: int) -> list[dict[str, Any]]:
    """Sends the parts that S3 does not hold yet and returns all of them, in order."""
    there = {
        part["PartNumber"]: part
        for page in client.get_paginator("list_parts").paginate(**target)
        for part in page.get("Parts", [])
    }
    size = source.stat().st_size

    def send(number: int) -> dict[str, Any]:
        with source.open("rb") as file:
            file.seek((number - 1) * part_bytes)
            body = file.read(part_bytes)
        checksum = base64.b64encode(hashlib.sha256(body).digest()).decode()
        held = there.get(number)
        if held and held["Size"] == len(body) and _same(held, body, checksum):
            etag = held["ETag"]
        else:
            etag = client.upload_part(
                **target, PartNumber=number, Body=body, ChecksumAlgorithm="SHA256", ChecksumSHA256=checksum
            )["ETag"]
        return {"PartNumber": number, "ETag": etag, "ChecksumSHA256": checksum}

    with ThreadPoolExecutor(PARALLEL_PARTS) as pool:
        return list(pool.map(send, range(1, -(-size // part_bytes) + 1)))


def _same(held: dict[str, Any], body: bytes, checksum: str) -> bool:
    """Whether a stored part equals `body`: by S3's SHA-256 where the server lists it, else by its MD5 ETag."""
    if "ChecksumSHA256" in held:
        return held["ChecksumSHA256"] == checksum
    return held["ETag"].strip('"') == hashlib.md5(body, usedforsecurity=False).hexdigest()


def download(client: Any, bucket: str, key: str, target: Path) -> str:
    """Fetches `key` into `target` atomically and returns its digest.

    A ``.part`` file left by a killed download of the same object is continued. Two processes that fetch
    into the same target do not share one.

    Raises:
        IntegrityError: The bytes do not match the digest stored with them.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    for _ in range(STREAM_ATTEMPTS - 1):
        try:
            return _download_once(client, bucket, key, target)
        except aws.ClientError as error:
            if error.response["ResponseMetadata"]["HTTPStatusCode"] != CHANGED:
                raise
    return _download_once(client, bucket, key, target)


def _download_once(client: Any, bucket: str, key: str, target: Path) -> str:
    """One attempt; a `ClientError` with status 412 says that the object was replaced while it was read."""
    answer = client.get_object(Bucket=bucket, Key=key)
    mark = hashlib.sha256(answer["ETag"].encode()).hexdigest()[:12]
    with _own_part(target.with_name(f".{target.name}.{mark}.part")) as (part, file):
        _stream(client, bucket, key, answer, file)
        file.flush()
        os.fsync(file.fileno())
        digest = digest_file(part)
        expected = answer["Metadata"].get("sha256")
        if expected and digest != f"sha256:{expected}":
            part.unlink()
            raise IntegrityError(
                f"s3://{bucket}/{key} has the digest {digest}, stored with it is sha256:{expected}",
                hint="upload the file again",
            )
        part.chmod(0o644)
        part.replace(target)
    return digest


@contextmanager
def _own_part(path: Path) -> Iterator[tuple[Path, BinaryIO]]:
    """Opens the part file under a lock; when another process holds it, a private one instead."""
    file = path.open("ab")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        mine = path.exists() and path.stat().st_ino == os.fstat(file.fileno()).st_ino
    except BlockingIOError:
        mine = False
    if mine:
        with file:
            yield path, file
        return
    file.close()
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=path.name, suffix=".part")
    private = Path(name)
    try:
        with os.fdopen(handle, "ab") as file:
            yield private, file
    finally:
        private.unlink(missing_ok=True)


def _stream(client: Any, bucket: str, key: str, answer: dict[str, Any], file: BinaryIO) -> None:
    """Appends what is missing of the object in `answer`; a broken stream is taken up again where it broke."""
    size, etag = answer["ContentLength"], answer["ETag"]
    if file.tell() > size:
        file.truncate(0)
        file.seek(0)
    for attempt in range(1, STREAM_ATTEMPTS + 1):
        try:
            if offset := file.tell():
                answer["Body"].close()
                if offset == size:
                    return
                answer = client.get_object(Bucket=bucket, Key=key, Range=f"bytes={offset}-", IfMatch=etag)
            for block in answer["Body"].iter_chunks(BLOCK):
                file.write(block)
            return
        except (aws.HTTPClientError, aws.IncompleteReadError):
            if attempt == STREAM_ATTEMPTS:
                raise
