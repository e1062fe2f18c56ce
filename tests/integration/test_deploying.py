"""Several versions of one use case side by side, under a real supervisor, with tiny services in place of Bentos."""

import itertools
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from flows.deploying import LocalDeployer, is_ready
from flows.switching import make_stable
from leitstand.errors import ConfigurationError, PermanentBackendError
from leitstand.settings import LocalSettings, Settings
from leitstand.types import RouteTable
from leitstand.usecase import UseCase, load
from tests.fakes import InMemoryRouteStore
from tests.servers import free_ports

TINY = Path(__file__).parents[1] / "tiny_bento.py"


def tiny(tag: str, host: str, port: int) -> list[str]:
    return [sys.executable, "-S", str(TINY), tag, host, str(port)]


numbers = itertools.count()


@pytest.fixture
def use_case(project: Path) -> UseCase:
    """A use case of its own for each test, since they share a supervisor."""
    support = load(project / "usecases/support/usecase.yaml")
    serving = support.serving.model_copy(update={"port": free_ports(1)[0]})
    return support.model_copy(update={"serving": serving, "name": f"support{next(numbers)}"})


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    return Settings(home=tmp_path_factory.mktemp("home"), local=LocalSettings(ready_timeout_s=20))


@pytest.fixture(scope="module")
def deployer(settings: Settings) -> Iterator[LocalDeployer]:
    deployer = LocalDeployer(settings, command=tiny)
    yield deployer
    deployer.supervisor.stop()


def answering(url: str) -> str:
    return httpx.get(f"{url}/v2").json()["version"]


def programs(deployer: LocalDeployer) -> set[str]:
    return {state.name for state in deployer.supervisor.states() if state.state in ("running", "starting")}


def test_versions_run_side_by_side_and_only_the_first_has_the_main_address(
    deployer: LocalDeployer, use_case: UseCase
) -> None:
    first = deployer.deploy(use_case, tag="support:1", version=1)
    second = deployer.deploy(use_case, tag="support:2", version=2)
    assert first.url.endswith(f":{use_case.serving.port}")
    assert (answering(first.url), answering(second.url)) == ("1", "2")
    assert deployer.deploy(use_case, tag="support:2", version=2) == second
    assert deployer.current(use_case.name) == first
    assert programs(deployer) >= {f"bento-{use_case.name}-v1", f"bento-{use_case.name}-v2"}
    assert deployer.endpoint_of(f"bento-{use_case.name}-v2") == second
    deployer.undeploy(second)
    deployer.undeploy(second)
    assert not is_ready(second.url)
    assert list(deployer.all(use_case.name)) == [first]


def test_what_was_deployed_comes_back_on_the_same_ports_after_a_restart(
    deployer: LocalDeployer, use_case: UseCase, settings: Settings
) -> None:
    for version in (1, 2):
        deployer.deploy(use_case, tag=f"support:{version}", version=version)
    deployer.supervisor.stop()
    again = LocalDeployer(settings, command=tiny)
    again.supervisor.start()
    before = {endpoint.url for endpoint in again.start_all() if endpoint.use_case == use_case.name}
    assert {again.deploy(use_case, tag=f"support:{version}", version=version).url for version in (1, 2)} == before


def test_a_version_that_does_not_become_ready_is_forgotten_and_disturbs_nobody(
    deployer: LocalDeployer, use_case: UseCase
) -> None:
    first = deployer.deploy(use_case, tag="support:1", version=1)
    with pytest.raises(PermanentBackendError, match="dead on arrival"):
        deployer.deploy(use_case, tag="support:2.dead", version=2)
    assert answering(first.url) == "1"
    assert list(deployer.all(use_case.name)) == [first]


def test_the_first_deployment_says_when_another_program_has_the_port(
    deployer: LocalDeployer, use_case: UseCase
) -> None:
    with (
        socket.create_server(("127.0.0.1", use_case.serving.port)),
        pytest.raises(ConfigurationError, match="taken by another program"),
    ):
        deployer.deploy(use_case, tag="support:1", version=1)


def test_a_switch_starts_the_new_version_before_the_route_moves_and_stops_the_old_one_after(
    deployer: LocalDeployer, use_case: UseCase
) -> None:
    answered: list[str] = []

    class Watched(InMemoryRouteStore):
        def write(self, table: RouteTable, *, expected: int) -> RouteTable:
            before = self.read(table.use_case)
            if before:
                answered.append(answering(before.stable.url))
            answered.append(answering(table.stable.url))
            return super().write(table, expected=expected)

    routes = Watched()
    for version in (1, 2):
        make_stable(
            deployer, routes, use_case, tag=f"support:{version}", version=version, actor="test", reason="a test",
            spread_s=0.01,
        )  # fmt: skip
    assert answered == ["1", "1", "2", "2", "2"], "old and new both answered at every change of the table"
    table = routes.read(use_case.name)
    assert table is not None
    assert table.stable.url.endswith(f":{use_case.serving.port}")
    assert answering(table.stable.url) == "2"
    assert [endpoint.version for endpoint in deployer.all(use_case.name)] == [2]
    current = deployer.current(use_case.name)
    assert current is not None
    assert current.url == table.stable.url
