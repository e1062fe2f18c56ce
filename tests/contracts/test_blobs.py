"""What every blob store promises, over a local folder and a real S3 server."""

import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from leitstand.errors import NotFoundError
from leitstand.files import digest_file
from leitstand.ports import BlobStore
from leitstand.settings import BlobSettings, Settings
from models.blobs.filesystem import FilesystemBlobStore
from models.blobs.opening import open_blobs
from tests.servers import S3Server

MEBIBYTE = 2**20


@pytest.fixture(params=["filesystem", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> BlobStore:
    if request.param == "filesystem":
        return FilesystemBlobStore(tmp_path / "blobs")
    server: S3Server = request.getfixturevalue("s3_server")
    return open_blobs(Settings(home=tmp_path, s3=server.settings, blobs=BlobSettings(uri=server.prefix())))


@pytest.fixture
def file(tmp_path: Path) -> Callable[..., Path]:
    def write(content: bytes, name: str = "source") -> Path:
        path = tmp_path / name
        path.write_bytes(content)
        return path

    return write


@pytest.mark.parametrize("size", [0, 1, 5 * MEBIBYTE, 5 * MEBIBYTE + 1, 11 * MEBIBYTE])
def test_bytes_come_back_with_their_digest(store: BlobStore, file: Callable[..., Path], tmp_path: Path, size: int):
    source = file(os.urandom(size))
    assert store.put_file("a/b c/ü", source) == digest_file(source)
    assert store.get_file("a/b c/ü", tmp_path / "out" / "copy") == digest_file(source)
    assert digest_file(tmp_path / "out" / "copy") == digest_file(source)


def test_the_last_writer_wins_and_equal_bytes_are_no_conflict(store: BlobStore, file: Callable[..., Path], tmp_path):
    store.put_file("key", file(b"one"))
    store.put_file("key", file(b"two"))
    store.put_file("key", file(b"two"))
    store.get_file("key", tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == b"two"


def test_keys_are_listed_in_order_by_prefix(store: BlobStore, file: Callable[..., Path]):
    assert list(store.list()) == []
    for key in ("b", "a/c/.hidden", "a/b", "ab"):
        store.put_file(key, file(key.encode()))
    assert list(store.list()) == ["a/b", "a/c/.hidden", "ab", "b"]
    assert list(store.list("a/")) == ["a/b", "a/c/.hidden"]


def test_a_missing_key_is_named(store: BlobStore, tmp_path: Path):
    assert not store.exists("nothing/here")
    with pytest.raises(NotFoundError, match="nothing/here"):
        store.get_file("nothing/here", tmp_path / "copy")
    assert not (tmp_path / "copy").exists()


def test_delete_removes_the_key_only_and_may_be_repeated(store: BlobStore, file: Callable[..., Path], tmp_path: Path):
    store.put_file("one", file(b"same"))
    store.put_file("two", file(b"same"))
    store.delete("one")
    store.delete("one")
    assert list(store.list()) == ["two"]
    store.get_file("two", tmp_path / "copy")


def test_a_failed_fetch_keeps_the_old_file(store: BlobStore, tmp_path: Path):
    (tmp_path / "copy").write_bytes(b"old")
    with pytest.raises(NotFoundError):
        store.get_file("missing", tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == b"old"


def test_readers_see_whole_contents_while_a_writer_replaces_them(store: BlobStore, tmp_path: Path):
    contents = [bytes([letter]) * 200_000 for letter in b"ab"]
    sources = []
    for index, content in enumerate(contents):
        sources.append(tmp_path / str(index))
        sources[-1].write_bytes(content)
    store.put_file("key", sources[0])
    stop = threading.Event()

    def rewrite() -> None:
        turn = 0
        while not stop.is_set():
            store.put_file("key", sources[turn := 1 - turn])

    writer = threading.Thread(target=rewrite)
    writer.start()
    try:
        for index in range(20):
            store.get_file("key", tmp_path / f"copy{index}")
            assert (tmp_path / f"copy{index}").read_bytes() in contents
    finally:
        stop.set()
        writer.join()
