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

__all__ = ["download", "part_name", "upload"]

BLOCK = 2**20
PARALLEL_PARTS = 4
STREAM_ATTEMPTS = 5
CHANGED = 412


def upload(client: Any, bucket: str, key: str, source: Path, *, digest: str, part_bytes: int) -> None:
    """Stores `source` under `key` with its digest as metadata; S3 checks a SHA-256 of what it receives.

    An unfinished upload of the key is continued when every part that S3 holds equals the file's. Should it
    have been begun for other content after all, the digest stored with it tells, and the file is sent anew.
    """
    metadata = {"sha256": digest.removeprefix("sha256:")}
    where = {"Bucket": bucket, "Key": key}
    if source.stat().st_size <= part_bytes:
        checksum = base64.b64encode(bytes.fromhex(metadata["sha256"])).decode()
        with source.open("rb") as body:
            client.put_object(
                **where, Body=body, Metadata=metadata, ChecksumAlgorithm="SHA256", ChecksumSHA256=checksum
            )
        return
    unfinished = _unfinished(client, where, source, part_bytes)
    if unfinished and _finish(client, where | {"UploadId": unfinished}, source, part_bytes, metadata):
        return
    begun = client.create_multipart_upload(**where, Metadata=metadata, ChecksumAlgorithm="SHA256")
    _finish(client, where | {"UploadId": begun["UploadId"]}, source, part_bytes, metadata)


def _finish(client: Any, target: dict[str, str], source: Path, part_bytes: int, metadata: dict[str, str]) -> bool:
    """Completes an upload; False when the key holds other content afterwards (or another process took it over)."""
    try:
        parts = _upload_parts(client, target, source, part_bytes)
        client.complete_multipart_upload(**target, MultipartUpload={"Parts": parts})
        head = client.head_object(Bucket=target["Bucket"], Key=target["Key"])
    except aws.ClientError as error:
        if error.response["Error"]["Code"] in ("NoSuchUpload", "NoSuchKey", "404"):
            return False
        raise
    return head["Metadata"] == metadata


def _unfinished(client: Any, where: dict[str, str], source: Path, part_bytes: int) -> str | None:
    """An upload of this key that was begun with the same bytes, if any; the newest first."""
    uploads = client.list_multipart_uploads(Bucket=where["Bucket"], Prefix=where["Key"]).get("Uploads", [])
    mine = sorted((item for item in uploads if item["Key"] == where["Key"]), key=lambda item: item["Initiated"])
    for upload_id in (item["UploadId"] for item in reversed(mine)):
        held = _held(client, where | {"UploadId": upload_id})
        if held and all(_same(part, *_part(source, number, part_bytes)) for number, part in held.items()):
            return upload_id
    return None


def _held(client: Any, target: dict[str, str]) -> dict[int, dict[str, Any]]:
    """Parts that S3 holds of an unfinished upload, by number; none when it ended meanwhile."""
    try:
        pages = list(client.get_paginator("list_parts").paginate(**target))
    except aws.ClientError as error:
        if error.response["Error"]["Code"] == "NoSuchUpload":
            return {}
        raise
    return {part["PartNumber"]: part for page in pages for part in page.get("Parts", [])}


def _part(source: Path, number: int, part_bytes: int) -> tuple[bytes, str]:
    """The bytes of one part (numbers start at 1) and their SHA-256 in base64."""
    with source.open("rb") as file:
        file.seek((number - 1) * part_bytes)
        body = file.read(part_bytes)
    return body, base64.b64encode(hashlib.sha256(body).digest()).decode()


def _upload_parts(client: Any, target: dict[str, str], source: Path, part_bytes: int) -> list[dict[str, Any]]:
    """Sends the parts that S3 does not hold yet and returns all of them, in order."""
    held = _held(client, target)

    def send(number: int) -> dict[str, Any]:
        body, checksum = _part(source, number, part_bytes)
        if number in held and _same(held[number], body, checksum):
            etag = held[number]["ETag"]
        else:
            etag = client.upload_part(
                **target, PartNumber=number, Body=body, ChecksumAlgorithm="SHA256", ChecksumSHA256=checksum
            )["ETag"]
        return {"PartNumber": number, "ETag": etag, "ChecksumSHA256": checksum}

    with ThreadPoolExecutor(PARALLEL_PARTS) as pool:
        return list(pool.map(send, range(1, -(-source.stat().st_size // part_bytes) + 1)))


def _same(held: dict[str, Any], body: bytes, checksum: str) -> bool:
    """Whether a stored part equals `body`: by S3's SHA-256 where the server lists it, else by its MD5 ETag."""
    if held["Size"] != len(body):
        return False
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
    with _own_part(target.with_name(part_name(target.name, answer["ETag"]))) as (part, file):
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


def part_name(name: str, etag: str) -> str:
    """Name of the file that a download of this content into `name` grows in."""
    return f".{name}.{hashlib.sha256(etag.encode()).hexdigest()[:12]}.part"


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
