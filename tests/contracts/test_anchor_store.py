"""Anchors, over every place they can be kept in."""

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from governance.audit.anchors import AnchorStore, FolderAnchors
from models.blobs.anchors import S3Anchors
from models.blobs.s3 import make_client


@pytest.fixture(params=["folder", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[AnchorStore]:
    if request.param == "folder":
        yield FolderAnchors(tmp_path / "anchors")
        return
    server = request.getfixturevalue("s3_server")
    yield S3Anchors(make_client(server.settings), server.prefix(), mode="", keep=timedelta())


def test_an_empty_place_has_no_anchors(store: AnchorStore) -> None:
    assert list(store.read()) == []


def test_an_anchor_comes_back_as_it_was_put(store: AnchorStore) -> None:
    assert store.put("chain/2.json", b"two") and store.put("chain/1.json", b"one") and store.put("other/1.json", b"x")
    assert list(store.read()) == [("chain/1.json", b"one"), ("chain/2.json", b"two"), ("other/1.json", b"x")]


def test_an_anchor_is_written_once(store: AnchorStore) -> None:
    assert store.put("chain/1.json", b"one") is True
    assert store.put("chain/1.json", b"forged") is False
    assert list(store.read()) == [("chain/1.json", b"one")]
