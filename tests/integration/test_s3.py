"""S3 when it refuses, vanishes or breaks off, and files that use cases fetch from it."""

import inspect
import os
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import botocore.exceptions
import pytest

from leitstand.errors import (
    BackendError,
    ConfigurationError,
    IntegrityError,
    NotFoundError,
    PermanentBackendError,
    TransientBackendError,
)  # fmt: skip
from leitstand.files import digest_file
from leitstand.settings import S3Settings
from models.blobs import transfer
from models.blobs.fetch import fetch_file, fetch_folder
from models.blobs.s3 import S3BlobStore, parse_uri
from models.blobs.s3_errors import translate
from tests.servers import S3Server, aws_credentials, free_ports

MEBIBYTE = 2**20


@pytest.fixture
def store(s3_server: S3Server) -> S3BlobStore:
    return S3BlobStore(s3_server.prefix(), s3_server.settings)


@pytest.fixture
def large(tmp_path: Path) -> Path:
    path = tmp_path / "large"
    path.write_bytes(os.urandom(12 * MEBIBYTE))
    return path


@pytest.mark.parametrize(
    ("access_key", "secret_key"), [("leitstand-tests", "not the secret"), ("nobody", "only-for-this-machine")]
)
def test_wrong_credentials_are_refused_with_a_way_out(s3_server: S3Server, large: Path, access_key, secret_key):
    with aws_credentials(access_key, secret_key):
        store = S3BlobStore(s3_server.prefix(), s3_server.settings)
        with pytest.raises(PermanentBackendError, match="AWS_ACCESS_KEY_ID"):
            store.put_file("key", large)


def test_no_credentials_are_said_to_be_missing(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(PermanentBackendError, match="no usable S3 credentials"):
        list(S3BlobStore(s3_server.prefix(), s3_server.settings).list())


def test_a_missing_bucket_is_not_a_missing_file(s3_server: S3Server, tmp_path: Path):
    store = S3BlobStore("s3://no-such-bucket", s3_server.settings)
    with pytest.raises(PermanentBackendError, match="bucket does not exist"):
        store.get_file("key", tmp_path / "copy")


def test_a_server_that_does_not_answer_is_worth_another_try(s3_server: S3Server, tmp_path: Path):
    nobody = S3Settings(endpoint_url=f"http://127.0.0.1:{free_ports(1)[0]}")
    with pytest.raises(TransientBackendError, match="could not be reached"):
        S3BlobStore("s3://bucket", nobody).get_file("key", tmp_path / "copy")


def test_every_exception_of_botocore_is_translated():
    """A new class in a new botocore has to be looked at: is it a way to say *try again*?"""
    found = [
        kind for _, kind in inspect.getmembers(botocore.exceptions, inspect.isclass)
        if issubclass(kind, Exception) and not issubclass(kind, Warning) and kind.__module__ == "botocore.exceptions"
    ]  # fmt: skip
    assert len(found) > 80
    transient = set()
    for kind in found:
        error = kind.__new__(kind)
        error.response = {"Error": {"Code": "InternalError"}, "ResponseMetadata": {"HTTPStatusCode": 500}}
        ours = translate(error, "s3://bucket/key")
        assert isinstance(ours, BackendError)
        assert "s3://bucket/key" in ours.message
        if isinstance(ours, TransientBackendError):
            transient.add(kind.__name__)
    assert transient == {
        "ChecksumError", "ClientError", "ConnectTimeoutError", "ConnectionClosedError", "ConnectionError",
        "EndpointConnectionError", "EventStreamError", "FlexibleChecksumError", "HTTPClientError",
        "IncompleteReadError", "MetadataRetrievalError", "ProxyConnectionError", "ReadTimeoutError",
        "ResponseStreamingError", "WaiterError",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("code", "status", "expected"),
    [
        ("NoSuchKey", 404, NotFoundError), ("404", 404, NotFoundError), ("NoSuchBucket", 404, PermanentBackendError),
        ("AccessDenied", 403, PermanentBackendError), ("SignatureDoesNotMatch", 403, PermanentBackendError),
        ("RequestTimeTooSkewed", 403, PermanentBackendError), ("SlowDown", 503, TransientBackendError),
        ("Unheard", 500, TransientBackendError), ("Unheard", 429, TransientBackendError),
        ("Unheard", 400, PermanentBackendError),
    ],
)  # fmt: skip
def test_answers_of_s3_are_told_apart(code: str, status: int, expected: type[Exception]):
    answer = {"Error": {"Code": code, "Message": "said"}, "ResponseMetadata": {"HTTPStatusCode": status}}
    ours = translate(botocore.exceptions.ClientError(answer, "GetObject"), "s3://bucket/key")
    assert type(ours) is expected


def test_a_part_that_a_killed_download_left_is_continued(store: S3BlobStore, large: Path, tmp_path: Path):
    store.put_file("large", large)
    target = tmp_path / "out" / "copy"
    target.parent.mkdir()
    etag = store._client.head_object(Bucket=store._bucket, Key=store._key("large"))["ETag"]
    part = target.with_name(transfer.part_name(target.name, etag))
    part.write_bytes(large.read_bytes()[: 7 * MEBIBYTE])
    ranges: list[str] = []
    store._client.meta.events.register(
        "before-call.s3.GetObject", lambda params, **_: ranges.append(params["headers"].get("Range", "whole"))
    )
    assert store.get_file("large", target) == digest_file(large)
    assert ranges == ["whole", f"bytes={7 * MEBIBYTE}-"]
    assert [path.name for path in target.parent.iterdir()] == ["copy"]


def test_a_wrong_part_is_thrown_away_and_the_next_fetch_succeeds(store: S3BlobStore, large: Path, tmp_path: Path):
    store.put_file("large", large)
    etag = store._client.head_object(Bucket=store._bucket, Key=store._key("large"))["ETag"]
    (tmp_path / transfer.part_name("copy", etag)).write_bytes(b"0" * MEBIBYTE)
    with pytest.raises(IntegrityError, match="large"):
        store.get_file("large", tmp_path / "copy")
    assert store.get_file("large", tmp_path / "copy") == digest_file(large)


def test_an_unfinished_upload_of_other_bytes_is_not_continued(store: S3BlobStore, large: Path, tmp_path: Path):
    other = tmp_path / "other"
    other.write_bytes(os.urandom(12 * MEBIBYTE))
    where = {"Bucket": store._bucket, "Key": store._key("key")}
    upload = store._client.create_multipart_upload(**where, Metadata={"sha256": "0" * 64})
    with other.open("rb") as body:
        store._client.upload_part(
            **where, UploadId=upload["UploadId"], PartNumber=1, Body=body.read(5 * MEBIBYTE)
        )  # fmt: skip
    assert store.put_file("key", large) == digest_file(large)
    assert store.get_file("key", tmp_path / "copy") == digest_file(large)


def test_an_upload_begun_for_a_longer_file_is_sent_anew(store: S3BlobStore, large: Path, tmp_path: Path):
    """Its first part is the same, so only the digest stored with it tells."""
    where = {"Bucket": store._bucket, "Key": store._key("key")}
    upload = store._client.create_multipart_upload(**where, Metadata={"sha256": "0" * 64})
    store._client.upload_part(
        **where, UploadId=upload["UploadId"], PartNumber=1, Body=large.read_bytes()[: 5 * MEBIBYTE]
    )  # fmt: skip
    assert store.put_file("key", large) == digest_file(large)
    assert store.get_file("key", tmp_path / "copy") == digest_file(large)


class _BreaksOff(BaseHTTPRequestHandler):
    """Serves 3 MiB, but hangs up after the first MiB of every answer."""

    content = bytes(range(256)) * (3 * MEBIBYTE // 256)

    def do_GET(self) -> None:
        start = int((self.headers.get("Range") or "bytes=0-").removeprefix("bytes=").rstrip("-"))
        self.send_response(206 if start else 200)
        self.send_header("ETag", '"one"')
        self.send_header("Content-Length", str(len(self.content) - start))
        self.end_headers()
        self.wfile.write(self.content[start : start + MEBIBYTE])
        self.close_connection = True

    def log_message(self, *_: object) -> None:
        """Silent."""


def test_a_broken_stream_is_taken_up_where_it_broke(s3_server: S3Server, tmp_path: Path):
    server = ThreadingHTTPServer(("127.0.0.1", 0), _BreaksOff)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        settings = S3Settings(endpoint_url=f"http://127.0.0.1:{server.server_port}")
        S3BlobStore("s3://bucket", settings).get_file("key", tmp_path / "copy")
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
    assert (tmp_path / "copy").read_bytes() == _BreaksOff.content


def test_a_use_case_fetches_files_and_folders(s3_server: S3Server, tmp_path: Path):
    store = S3BlobStore(s3_server.prefix(), s3_server.settings)
    uri = f"s3://{store._bucket}/{store._prefix}"
    for name in ("config.json", "sub/model.bin"):
        (tmp_path / "file").write_text(name)
        store.put_file(f"base/{name}", tmp_path / "file")
    assert fetch_file(f"{uri}/base/config.json", tmp_path / "one", s3_server.settings).read_text() == "config.json"
    folder = fetch_folder(f"{uri}/base", tmp_path / "folder", s3_server.settings)
    assert (folder / "sub" / "model.bin").read_text() == "sub/model.bin"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder", "one"]
    with pytest.raises(NotFoundError, match="nothing"):
        fetch_folder(f"{uri}/nothing", tmp_path / "none", s3_server.settings)
    assert not (tmp_path / "none").exists()


def test_local_paths_are_copied(tmp_path: Path):
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "file").write_text("x")
    fetch_file(str(tmp_path / "a" / "b" / "file"), tmp_path / "file", S3Settings())
    fetch_folder(f"file://{tmp_path}/a", tmp_path / "copy", S3Settings())
    assert (tmp_path / "file").read_text() == (tmp_path / "copy" / "b" / "file").read_text() == "x"
    with pytest.raises(NotFoundError, match="missing"):
        fetch_file(str(tmp_path / "missing"), tmp_path / "out", S3Settings())


@pytest.mark.parametrize("uri", ["gs://bucket/key", "http://host/file"])
def test_other_schemes_are_refused(uri: str, tmp_path: Path):
    with pytest.raises(ConfigurationError, match="s3://"):
        fetch_file(uri, tmp_path / "out", S3Settings())


@pytest.mark.parametrize("uri", ["s3://", "s3:///key", "/folder"])
def test_what_is_no_s3_uri_is_refused(uri: str):
    with pytest.raises(ConfigurationError, match="s3://BUCKET"):
        parse_uri(uri)
