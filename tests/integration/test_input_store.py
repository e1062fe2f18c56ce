"""Raw texts are kept only when asked for, never readable on disk, and gone when they should be."""

import stat
import threading
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography.fernet import Fernet
from pydantic import SecretStr

from governance.input_store import InputStore, open_input_store
from leitstand.errors import ConfigurationError, IntegrityError
from leitstand.settings import MonitoringSettings, Settings
from tests.rows_for_tests import NOON

TEXTS = ["My card 4711 is lost", "Grüße, wo bleibt mein Geld?"]


def opened(home: Path, **monitoring: object) -> InputStore:
    return open_input_store(Settings(home=home, monitoring=MonitoringSettings(**monitoring)))  # type: ignore[arg-type]


def bytes_below(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file())


def test_off_by_default_and_then_nothing_is_written(tmp_path: Path) -> None:
    store = opened(tmp_path)
    store.put("support", "r1", TEXTS, NOON)
    assert not store.enabled
    assert store.get("support", "r1") == []
    assert list(tmp_path.iterdir()) == []


def test_texts_come_back_and_no_word_of_them_is_on_disk(tmp_path: Path) -> None:
    store = opened(tmp_path, keep_texts_days=7)
    store.put("support", "r1", TEXTS, NOON, "s1")
    assert opened(tmp_path, keep_texts_days=7).get("support", "r1") == TEXTS
    assert store.get("support", "other") == store.get("finance", "r1") == []
    assert b"card" not in bytes_below(tmp_path) and b"Geld" not in bytes_below(tmp_path)
    assert stat.S_IMODE((tmp_path / "texts" / "key").stat().st_mode) == 0o600


def test_the_same_request_again_replaces_its_texts(tmp_path: Path) -> None:
    store = opened(tmp_path, keep_texts_days=7)
    store.put("support", "r1", TEXTS, NOON)
    store.put("support", "r1", ["one"], NOON)
    assert store.get("support", "r1") == ["one"]


def test_retention_and_erasure_leave_no_trace(tmp_path: Path) -> None:
    store = opened(tmp_path, keep_texts_days=7)
    store.put("support", "old-request", TEXTS, NOON - timedelta(days=8), "s1")
    store.put("support", "r2", TEXTS, NOON, "erased-subject")
    store.put("support", "r3", TEXTS, NOON, "s1")
    assert store.expire(NOON) == 2
    assert store.erase("erased-subject") == 2
    assert store.erase("") == 0
    assert store.get("support", "old-request") == store.get("support", "r2") == []
    assert store.get("support", "r3") == ["My card 4711 is lost", TEXTS[1]]
    assert b"erased-subject" not in bytes_below(tmp_path) and b"old-request" not in bytes_below(tmp_path)


def test_switching_it_off_lets_everything_expire(tmp_path: Path) -> None:
    opened(tmp_path, keep_texts_days=7).put("support", "r1", TEXTS, NOON)
    assert opened(tmp_path).expire(NOON) == 2
    assert opened(tmp_path, keep_texts_days=7).get("support", "r1") == []


def test_another_key_is_no_reason_to_return_anything(tmp_path: Path) -> None:
    opened(tmp_path, keep_texts_days=7).put("support", "r1", TEXTS, NOON)
    other = opened(tmp_path, keep_texts_days=7, texts_key=SecretStr(Fernet.generate_key().decode()))
    with pytest.raises(IntegrityError, match="r1"):
        other.get("support", "r1")
    with pytest.raises(ConfigurationError, match="no Fernet key"):
        opened(tmp_path, keep_texts_days=7, texts_key=SecretStr("secret"))


def test_processes_that_start_together_share_one_key(tmp_path: Path) -> None:
    stores: list[InputStore] = []
    threads = [threading.Thread(target=lambda: stores.append(opened(tmp_path, keep_texts_days=7))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    stores[0].put("support", "r1", TEXTS, NOON)
    assert all(store.get("support", "r1") == TEXTS for store in stores)
