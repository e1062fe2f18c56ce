"""One contract for stores of API keys: in memory, SQLite, Redis."""

import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from governance.access.api_keys import ApiKeyStore, find_key, mint
from governance.access.opening import open_api_keys
from leitstand.errors import ConfigurationError, ConflictError, NotFoundError, TransientBackendError
from leitstand.settings import AccessSettings, GatewaySettings, Settings
from tests.fakes import InMemoryApiKeys

NOW = datetime(2026, 1, 1, tzinfo=UTC)
Opener = Callable[[], ApiKeyStore]


@pytest.fixture(params=["memory", "sqlite", "redis"])
def opener(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Opener]:
    """Opens further views of one store, as other processes would."""
    if request.param == "memory":
        memory = InMemoryApiKeys()
        yield lambda: memory
        return
    uri = request.getfixturevalue("redis_server").database() if request.param == "redis" else ""
    settings = Settings(home=tmp_path, access=AccessSettings(keys_uri=uri))
    opened: list[ApiKeyStore] = []

    def open_one() -> ApiKeyStore:
        opened.append(open_api_keys(settings))
        return opened[-1]

    yield open_one
    for store in opened:
        store.close()  # type: ignore[attr-defined]


@pytest.fixture
def store(opener: Opener) -> ApiKeyStore:
    return opener()


def key(subject: str = "worker", **changes: object) -> tuple[str, object]:
    text, record = mint(subject, "acme", ["support:predict"], now=NOW, ends_at=NOW + timedelta(days=90))
    return text, record.model_copy(update=changes)


def test_an_empty_store_has_no_keys(store: ApiKeyStore) -> None:
    assert list(store.all()) == [] and store.revision() == 0


def test_other_processes_see_a_new_key_at_once(opener: Opener) -> None:
    one, other = opener(), opener()
    text, record = key()
    before = other.revision()
    one.add(record)  # type: ignore[arg-type]
    assert list(other.all()) == [record] and other.revision() > before
    assert find_key(text, other.all()[0])


def test_keys_come_oldest_first(store: ApiKeyStore) -> None:
    for day in range(3):
        store.add(key(str(day), created_at=NOW + timedelta(days=day))[1])  # type: ignore[arg-type]
    assert [each.subject for each in store.all()] == ["0", "1", "2"]


def test_an_id_is_given_once(store: ApiKeyStore) -> None:
    _, record = key()
    store.add(record)  # type: ignore[arg-type]
    with pytest.raises(ConflictError):
        store.add(record)  # type: ignore[arg-type]
    assert len(store.all()) == 1


def test_a_key_ends_once_and_never_later(store: ApiKeyStore) -> None:
    _, record = key()
    store.add(record)  # type: ignore[arg-type]
    before = store.revision()
    store.end(record.key_id, NOW + timedelta(hours=24), "rotated")  # type: ignore[attr-defined]
    assert store.all()[0].valid_at(NOW + timedelta(hours=23))
    ended = store.end(record.key_id, NOW + timedelta(hours=1), "revoked")  # type: ignore[attr-defined]
    again = store.end(record.key_id, NOW + timedelta(hours=30), "rotated")  # type: ignore[attr-defined]
    assert ended == again == store.all()[0]
    assert ended.ended == "revoked" and ended.ends_at == NOW + timedelta(hours=1)
    assert store.revision() > before
    with pytest.raises(NotFoundError, match="leitstand keys list"):
        store.end("0" * 16, NOW, "revoked")


def test_changes_at_once_all_count(opener: Opener) -> None:
    store = opener()
    before = store.revision()
    threads = [threading.Thread(target=lambda: opener().add(key()[1])) for _ in range(8)]  # type: ignore[arg-type]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(store.all()) == 8 and store.revision() == before + 8


def test_the_key_itself_is_stored_nowhere(tmp_path: Path) -> None:
    store = open_api_keys(Settings(home=tmp_path))
    text, record = key()
    store.add(record)  # type: ignore[arg-type]
    content = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert record.key_id.encode() in content  # type: ignore[attr-defined]
    assert text.rpartition("_")[2].encode() not in content and text.encode() not in content
    assert record.digest not in repr(record)  # type: ignore[attr-defined]


def test_they_lie_beside_the_route_tables_unless_told_otherwise(tmp_path: Path) -> None:
    shared = open_api_keys(Settings(gateway=GatewaySettings(routes_uri="redis://127.0.0.1:1/0")))
    with pytest.raises(TransientBackendError, match="does not answer"):
        shared.all()
    with pytest.raises(ConfigurationError, match="cannot be kept"):
        open_api_keys(Settings(access=AccessSettings(keys_uri="mysql://x")))
    for names in (["a b"], [""], ['a"b']):
        with pytest.raises(ConfigurationError, match="words"):
            mint("s", "t", names, now=NOW, ends_at=None)
    with pytest.raises(ConfigurationError, match="ended already"):
        mint("s", "t", [], now=NOW, ends_at=NOW)
