"""The supervisor with real processes."""

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from flows.supervisor import Program, Supervisor, port_is_free, wait_until
from leitstand.errors import PermanentBackendError, TransientBackendError
from tests.servers import free_ports


@pytest.fixture
def supervisor(tmp_path: Path) -> Iterator[Supervisor]:
    supervisor = Supervisor(tmp_path, os.environ)
    supervisor.start()
    yield supervisor
    supervisor.stop()


def file_server(name: str, port: int) -> Program:
    command = [sys.executable, "-m", "http.server", str(port), "--bind", "127.0.0.1"]
    return Program(name=name, command=command, environment={"PERCENT": "100%"})


def answers(port: int) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{port}").status_code == 200
    except httpx.HTTPError:
        return False


def wait_for(port: int) -> None:
    wait_until(lambda: answers(port), timeout_s=20, what=f"port {port}")


def test_a_killed_program_is_started_again(supervisor: Supervisor) -> None:
    port = free_ports(1)[0]
    supervisor.put(file_server("files", port))
    wait_for(port)
    first = supervisor.state("files")
    assert first is not None
    os.kill(first.pid, signal.SIGKILL)
    wait_until(
        lambda: (supervisor.state("files") or first).pid not in (0, first.pid), timeout_s=20, what="a new process"
    )
    wait_for(port)


def test_put_replaces_a_changed_program_and_leaves_an_equal_one_alone(supervisor: Supervisor) -> None:
    old, new = free_ports(2)
    supervisor.put(file_server("files", old))
    wait_for(old)
    before = supervisor.state("files")
    supervisor.put(file_server("files", old))
    assert supervisor.state("files") == before
    supervisor.put(file_server("files", new))
    wait_for(new)
    assert port_is_free("127.0.0.1", old)


def test_stop_ends_programs_and_a_second_stop_is_no_error(tmp_path: Path) -> None:
    supervisor = Supervisor(tmp_path, os.environ)
    supervisor.start()
    port = free_ports(1)[0]
    supervisor.put(file_server("files", port))
    wait_for(port)
    supervisor.stop()
    assert port_is_free("127.0.0.1", port)
    assert supervisor.states() == []
    supervisor.stop()


def test_a_deep_home_still_gets_a_socket(tmp_path: Path) -> None:
    supervisor = Supervisor(tmp_path / ("deep" * 30), os.environ)
    supervisor.start()
    assert supervisor.is_running()
    supervisor.stop()


def test_waiting_says_what_for_and_gives_up_early_with_the_reason() -> None:
    with pytest.raises(TransientBackendError, match="for a miracle"):
        wait_until(lambda: False, timeout_s=0.01, what="a miracle", interval_s=0.001)
    with pytest.raises(PermanentBackendError, match="it is dead"):
        wait_until(lambda: False, timeout_s=60, what="a miracle", give_up=lambda: "it is dead")
