"""One contract for route stores: in memory, SQLite, Redis, PostgreSQL."""

import sqlite3
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import psycopg
import pytest

from governance.routes.opening import open_route_store
from governance.routes.tables import ensure_stable
from leitstand.errors import ConfigurationError, ConflictError, IntegrityError, LeitstandError, TransientBackendError
from leitstand.ports import RouteStore
from leitstand.settings import GatewaySettings, Settings
from leitstand.types import RouteTable, Target, TenantRoute
from tests.fakes import InMemoryRouteStore
from tests.servers import PostgresServer, RedisServer

Opener = Callable[[], RouteStore]


@pytest.fixture(params=["memory", "sqlite", "redis", "postgres"])
def opener(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Opener]:
    """Opens further views of one store, as other processes would."""
    if request.param == "memory":
        memory = InMemoryRouteStore()
        yield lambda: memory
        return
    uri = ""
    if request.param == "redis":
        uri = request.getfixturevalue("redis_server").database()
    if request.param == "postgres":
        uri = request.getfixturevalue("empty_postgres").database()
    settings = Settings(home=tmp_path, gateway=GatewaySettings(routes_uri=uri))
    opened: list[RouteStore] = []

    def open_one() -> RouteStore:
        opened.append(open_route_store(settings))
        return opened[-1]

    yield open_one
    for store in opened:
        store.close()  # type: ignore[attr-defined]


@pytest.fixture
def store(opener: Opener) -> RouteStore:
    return opener()


def table(use_case: str = "support", percent: float = 0, **changes: object) -> RouteTable:
    return RouteTable(
        use_case=use_case, stable=Target(version=1, url="http://127.0.0.1:3001"),
        canary=Target(version=2, url="http://127.0.0.1:3002"), canary_percent=percent,
        changed_at=datetime(2026, 1, 1, tzinfo=UTC), actor="test", reason="because ünïcode",
    ).model_copy(update=changes)  # fmt: skip


def test_an_unknown_use_case_has_no_table(store: RouteStore) -> None:
    assert store.read("support") is None
    assert store.names() == [] and store.revisions() == {} and store.history("support") == []


def test_a_written_table_is_read_back_with_the_next_revision(store: RouteStore) -> None:
    first = store.write(table(), expected=0)
    assert first == table(revision=1)
    second = store.write(table(percent=5), expected=1)
    assert store.read("support") == second == table(percent=5, revision=2)
    assert store.revisions() == {"support": 2}


def test_fallback_and_tenants_are_kept(store: RouteStore) -> None:
    small = Target(version=3, url="http://127.0.0.1:3003")
    full = table(
        fallback=small, tenants={"acme": TenantRoute(target=small), "ünï": TenantRoute(target=small, fallback=small)}
    )
    store.write(full, expected=0)
    assert store.read("support") == full.model_copy(update={"revision": 1})
    assert [target.version for target in full.targets()] == [1, 2, 3]


def test_another_process_sees_the_change_at_once(store: RouteStore, opener: Opener) -> None:
    other = opener()
    assert other.read("support") is None
    store.write(table(), expected=0)
    assert other.read("support") == table(revision=1)
    other.write(table(percent=5), expected=1)
    assert store.revisions() == {"support": 2}


@pytest.mark.parametrize("expected", [0, 2, 7])
def test_a_stale_writer_is_refused_and_changes_nothing(store: RouteStore, expected: int) -> None:
    store.write(table(), expected=0)
    with pytest.raises(ConflictError, match=f"revision 1, not {expected}"):
        store.write(table(percent=99), expected=expected)
    assert store.read("support") == table(revision=1)
    assert len(store.history("support")) == 1


def test_one_of_many_concurrent_writers_wins_each_revision(opener: Opener) -> None:
    won: list[int] = []

    def climb() -> None:
        store = opener()
        for revision in range(5):
            try:
                store.write(table(), expected=revision)
                won.append(revision)
            except ConflictError:
                pass

    threads = [threading.Thread(target=climb) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(won) == sorted(set(won))
    assert [t.revision for t in opener().history("support")] == list(range(1, len(won) + 1))


def test_use_cases_do_not_meet(store: RouteStore) -> None:
    store.write(table("support"), expected=0)
    store.write(table("finance"), expected=0)
    store.write(table("finance"), expected=1)
    assert store.names() == ["finance", "support"]
    assert store.revisions() == {"finance": 2, "support": 1}


def test_the_history_keeps_every_revision_in_order(store: RouteStore) -> None:
    for revision, percent in enumerate((0, 5, 25)):
        store.write(table(percent=percent), expected=revision)
    assert [(t.revision, t.canary_percent) for t in store.history("support")] == [(1, 0), (2, 5), (3, 25)]


@pytest.mark.parametrize(
    "broken",
    [
        {"canary": None, "canary_percent": 5.0}, {"stable": Target(version=1, url="localhost:3000")},
        {"fallback": Target(version=1, url="file:///etc/passwd")},
        {"tenants": {"acme": TenantRoute(target=Target(version=1, url="ftp://host"))}},
    ],
)  # fmt: skip
def test_a_table_that_cannot_be_served_is_refused(store: RouteStore, broken: dict[str, object]) -> None:
    with pytest.raises(ConfigurationError):
        store.write(table(**broken), expected=0)
    assert store.read("support") is None


def test_the_first_deployment_becomes_stable_and_later_ones_do_not(store: RouteStore) -> None:
    one, two = (Target(version=v, url=f"http://127.0.0.1:300{v}") for v in (1, 2))
    first = ensure_stable(store, "support", one, actor="deployer", reason="first deployment")
    assert first.stable == one and first.revision == 1
    assert ensure_stable(store, "support", one, actor="deployer", reason="again") == first
    assert ensure_stable(store, "support", two, actor="deployer", reason="another process") == first


def test_a_version_exchanged_in_place_becomes_stable(store: RouteStore) -> None:
    one, two = (Target(version=v, url="http://127.0.0.1:3001") for v in (1, 2))
    ensure_stable(store, "support", one, actor="deployer", reason="first deployment")
    assert ensure_stable(store, "support", two, actor="deployer", reason="replaced").stable == two


def test_a_redis_that_is_gone_is_a_transient_error_without_the_password() -> None:
    uri = "redis://:hunter2@127.0.0.1:1/0"
    store = open_route_store(Settings(gateway=GatewaySettings(routes_uri=uri)))
    with pytest.raises(TransientBackendError) as caught:
        store.read("support")
    assert "127.0.0.1:1" in str(caught.value) and "hunter2" not in str(caught.value)


def test_a_postgres_that_is_gone_is_a_transient_error_without_the_password() -> None:
    store = open_route_store(Settings(gateway=GatewaySettings(routes_uri="postgresql://me:hunter2@127.0.0.1:1/routes")))
    with pytest.raises(TransientBackendError) as caught:
        store.read("support")
    assert "127.0.0.1:1" in str(caught.value) and "hunter2" not in str(caught.value)


def test_a_postgres_that_ended_our_connection_is_asked_again(empty_postgres: PostgresServer) -> None:
    store = open_route_store(Settings(gateway=GatewaySettings(routes_uri=empty_postgres.database())))
    store.write(table(), expected=0)
    empty_postgres.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'leitstand-routes'"
    )
    with pytest.raises(TransientBackendError):
        store.read("support")
    assert store.read("support") == table(revision=1)
    store.close()  # type: ignore[attr-defined]


def test_tables_that_were_stored_before_there_were_fallbacks_are_read_and_written_on(
    tmp_path: Path, redis_server: RedisServer, empty_postgres: PostgresServer, project: Path
) -> None:
    record = (project / "tests" / "fixtures" / "routes" / "version-1.json").read_text().strip()
    file, redis_uri, postgres_uri = tmp_path / "routes.db", redis_server.database(), empty_postgres.database()
    for uri in (str(file), redis_uri, postgres_uri):
        store = open_route_store(Settings(gateway=GatewaySettings(routes_uri=uri)))
        store.write(table(), expected=0)
        store.close()  # type: ignore[attr-defined]
    with sqlite3.connect(file) as connection:
        connection.execute("UPDATE routes SET record = ?", (record,))
    redis_server.client(redis_uri).lset("{leitstand:routes}:support", 0, record)
    with psycopg.connect(postgres_uri) as connection:
        connection.execute("UPDATE leitstand_routes SET record = %s", (record,))
    for uri in (str(file), redis_uri, postgres_uri):
        store = open_route_store(Settings(gateway=GatewaySettings(routes_uri=uri)))
        old = store.read("support")
        assert old is not None and (old.schema_version, old.fallback, old.tenants) == (1, None, {})
        assert store.write(old, expected=1).schema_version == 2
        store.close()  # type: ignore[attr-defined]


def test_damage_is_reported_as_such(tmp_path: Path, redis_server: RedisServer) -> None:
    uri = redis_server.database()
    redis_server.client(uri).rpush("{leitstand:routes}:support", "{not json")
    file = tmp_path / "routes.db"
    file.write_bytes(b"this is no database, however long it may be" * 100)
    for where in (uri, str(file)):
        with pytest.raises(IntegrityError):
            open_route_store(Settings(gateway=GatewaySettings(routes_uri=where))).read("support")


@pytest.mark.parametrize("uri", ["ftp://host/routes", "redis://host:port", "postgresql://host/x?nonsense=1"])
def test_a_wrong_uri_names_the_remedy(uri: str) -> None:
    with pytest.raises(LeitstandError, match=r"redis://|postgresql://"):
        open_route_store(Settings(gateway=GatewaySettings(routes_uri=uri)))
