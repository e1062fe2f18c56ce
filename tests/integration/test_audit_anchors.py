"""Anchors of the audit trail on a real S3 server under object lock."""

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError

from governance.audit.anchors import FolderAnchors, anchor_heads
from governance.audit.verify_standalone import read_public_keys, segments, verify_trail
from leitstand.errors import ConfigurationError, PermanentBackendError
from leitstand.settings import AuditSettings, Settings
from models.blobs.anchors import S3Anchors, open_anchors
from models.blobs.s3 import make_client
from tests.audit_for_tests import entry, only_chain, write_trail
from tests.servers import S3Server


@pytest.fixture(scope="module")
def locked(s3_server: S3Server) -> tuple[Any, str]:
    """A client and a bucket with object lock."""
    client = make_client(s3_server.settings)
    client.create_bucket(Bucket="anchors", ObjectLockEnabledForBucket=True)
    return client, "s3://anchors/a/b"


def test_an_anchor_is_written_once_and_cannot_be_removed(locked: tuple[Any, str]) -> None:
    client, uri = locked
    anchors = S3Anchors(client, uri, mode="COMPLIANCE", keep=timedelta(days=1))
    assert anchors.put("chain/1.json", b"first") is True
    assert anchors.put("chain/1.json", b"second") is False
    assert anchors.read() == [("chain/1.json", b"first")]
    (version,) = client.list_object_versions(Bucket="anchors", Prefix="a/b/chain/1.json")["Versions"]
    with pytest.raises(ClientError, match="AccessDenied"):
        client.delete_object(Bucket="anchors", Key="a/b/chain/1.json", VersionId=version["VersionId"])
    # what lies over it (another version, a delete marker) hides nothing
    client.put_object(Bucket="anchors", Key="a/b/chain/1.json", Body=b"forged")
    client.delete_object(Bucket="anchors", Key="a/b/chain/1.json")
    assert sorted(content for _, content in anchors.read()) == [b"first", b"forged"]


def test_a_rewritten_trail_is_found_by_its_anchors(locked: tuple[Any, str], tmp_path: Path) -> None:
    client, _ = locked
    anchors = S3Anchors(client, "s3://anchors/trail", mode="GOVERNANCE", keep=timedelta(days=1))
    write_trail(tmp_path, (entry(n) for n in range(5)))
    assert list(anchor_heads(tmp_path, anchors).values()) == [7]
    assert anchor_heads(tmp_path, anchors) == {}
    keys = read_public_keys((tmp_path / "public_keys").glob("*.pem"))
    assert verify_trail(tmp_path, keys, anchors.read()).all_problems == []
    chain = only_chain(tmp_path)
    for path in (*segments(chain), chain / "heads.jsonl", chain / "head.json"):
        path.unlink()
    write_trail(tmp_path, (entry(n, subject="eve") for n in range(5)))
    assert verify_trail(tmp_path, keys).all_problems != []  # chains.jsonl knows its first record
    (tmp_path / "chains.jsonl").unlink()
    assert verify_trail(tmp_path, keys).all_problems == []
    (problem,) = verify_trail(tmp_path, keys, anchors.read()).all_problems
    assert problem.sequence == 7 and "rewritten" in problem.what


def test_a_bucket_without_object_lock_is_said_to_have_none(s3_server: S3Server) -> None:
    settings = Settings(s3=s3_server.settings, audit=AuditSettings(anchors=s3_server.prefix()))
    with pytest.raises(PermanentBackendError):
        open_anchors(settings).put("chain/1.json", b"first")
    unlocked = settings.model_copy(update={"audit": settings.audit.model_copy(update={"anchor_lock": "off"})})
    anchors = open_anchors(unlocked)
    assert anchors.put("chain/2.json", b"first") is True
    assert ("chain/2.json", b"first") in anchors.read()


def test_places_are_chosen_by_their_address(tmp_path: Path) -> None:
    assert isinstance(open_anchors(Settings(home=tmp_path), str(tmp_path / "x")), FolderAnchors)
    with pytest.raises(ConfigurationError, match="ftp"):
        open_anchors(Settings(home=tmp_path), "ftp://x")
