"""What the registry does when processes are killed, collide, or run out of disk. Real processes and disks."""

import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from leitstand.errors import IntegrityError, PermanentBackendError
from leitstand.settings import Settings
from leitstand.types import ModelRef
from models.artifact import verify
from models.ledger import open_ledger
from models.registry.opening import open_registry
from tests.models_for_tests import candidate

MEBIBYTE = 2**20
DEADLINE_S = 60
REGISTER = """
import sys
from pathlib import Path
from leitstand.settings import Settings
from models.registry.opening import open_registry
from tests.models_for_tests import candidate
for folder in sys.argv[2:]:
    print(open_registry(Settings(home=Path(sys.argv[1]))).register(candidate(Path(folder))).version, flush=True)
"""


@pytest.fixture
def home(tmp_path: Path, mlflow_database: Path) -> Path:
    home = tmp_path / "home"
    (home / "mlflow").mkdir(parents=True)
    shutil.copyfile(mlflow_database, home / "mlflow" / "registry.db")
    return home


def start(home: Path, *folders: Path, code: str = REGISTER) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", code, str(home), *map(str, folders)], stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2],
    )  # fmt: skip


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, "the awaited state never came"
        time.sleep(0.001)


def stored_bytes(home: Path) -> int:
    files = (home / "mlflow" / "artifacts").rglob("*")
    return sum(path.stat().st_size for path in files if path.is_file() and not path.is_symlink())


@pytest.fixture
def large(tmp_path: Path) -> Path:
    """A model large enough to be caught in the middle of its registration."""
    folder = tmp_path / "large"
    candidate(folder, weights=os.urandom(MEBIBYTE) * 128)
    return folder


def kill_while_storing(home: Path, folder: Path) -> None:
    process = start(home, folder)
    wait_for(lambda: stored_bytes(home) > 8 * MEBIBYTE or process.poll() is not None)
    process.send_signal(signal.SIGKILL)
    _, errors = process.communicate()
    assert process.returncode == -signal.SIGKILL, errors


def test_a_killed_registration_is_invisible_and_its_rerun_registers_once(home: Path, large: Path, tmp_path: Path):
    kill_while_storing(home, large)
    registry = open_registry(Settings(home=home))
    assert list(registry.versions("support")) == []
    assert list((home / "registry" / "attempts").glob("*.json")) != []

    version = registry.register(candidate(large))
    assert version.version == 1
    assert list(registry.versions("support")) == [version]
    assert verify_fetched(registry, version.ref, tmp_path) == version.weights_digest
    assert list((home / "registry" / "attempts").iterdir()) == []


def test_what_a_killed_registration_left_is_reclaimed_by_the_next_one(home: Path, large: Path, tmp_path: Path):
    kill_while_storing(home, large)
    registry = open_registry(Settings(home=home))
    version = registry.register(candidate(tmp_path / "small"))
    assert version.version == 1
    assert stored_bytes(home) < MEBIBYTE
    assert list((home / "registry" / "attempts").iterdir()) == []


def verify_fetched(registry, ref: ModelRef, folder: Path) -> str:
    registry.fetch(ref, folder / "fetched")
    return verify(folder / "fetched")


def test_processes_that_register_at_once_get_their_own_numbers(tmp_path: Path):
    """On a home that does not exist yet, so that they also race for the tables of the database."""
    home = tmp_path / "fresh"
    folders = [tmp_path / f"model{number}" for number in range(6)]
    for number, folder in enumerate(folders):
        candidate(folder, weights=b"%d" % number)
    shared = tmp_path / "shared"
    candidate(shared, weights=b"shared")
    processes = [start(home, *folders[:3], shared), start(home, *folders[3:], shared)]
    answers = [process.communicate(timeout=DEADLINE_S) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], answers
    assert not any("locked" in err for _, err in answers)
    numbers = [[int(line) for line in out.split()] for out, _ in answers]
    assert sorted({number for each in numbers for number in each}) == [1, 2, 3, 4, 5, 6, 7]
    assert numbers[0][-1] == numbers[1][-1]
    assert len(open_registry(Settings(home=home)).versions("support")) == 7


def test_numbers_are_not_used_again_after_a_version_is_deleted_in_mlflow(home: Path, tmp_path: Path):
    from mlflow import MlflowClient

    registry = open_registry(Settings(home=home))
    registry.register(candidate(tmp_path / "one", weights=b"1"))
    registry.register(candidate(tmp_path / "two", weights=b"2"))
    uri = f"sqlite:///{home}/mlflow/registry.db"
    MlflowClient(tracking_uri=uri, registry_uri=uri).delete_model_version("support", "2")
    assert registry.register(candidate(tmp_path / "three", weights=b"3")).version == 3


@pytest.mark.parametrize("damage", ["truncate", "change", "remove"])
def test_damaged_weights_are_refused_with_the_name_of_the_file(home: Path, tmp_path: Path, damage: str):
    registry = open_registry(Settings(home=home))
    version = registry.register(candidate(tmp_path / "model", weights=b"some weights"))
    stored = next((home / "mlflow" / "artifacts").rglob("model.safetensors")).resolve()
    if damage == "truncate":
        stored.write_bytes(b"some")
    elif damage == "change":
        stored.write_bytes(b"SOME weights")
    else:
        stored.unlink()
    with pytest.raises(IntegrityError, match=r"model\.safetensors"):
        registry.fetch(version.ref, tmp_path / "copy")
    assert not (tmp_path / "copy").exists()


@pytest.fixture
def small_disk(tmp_path: Path, mlflow_database: Path) -> Iterator[Path]:
    """A file system of 8 MiB with an empty registry on it. Without the right to mount one, a file size limit."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=8m", "leitstand-test", str(disk)], capture_output=True, check=False
    ).returncode == 0  # fmt: skip
    (disk / "mlflow").mkdir()
    shutil.copyfile(mlflow_database, disk / "mlflow" / "registry.db")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    if not mounted:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (6 * MEBIBYTE, limits[1]))
    yield disk
    if mounted:
        subprocess.run(["umount", "--lazy", str(disk)], check=True)
    else:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_full_disk_registers_nothing_and_says_so(small_disk: Path, tmp_path: Path):
    too_large = candidate(tmp_path / "large", weights=os.urandom(9 * MEBIBYTE))
    registry = open_registry(Settings(home=small_disk))
    with pytest.raises(PermanentBackendError, match=r"disk is full|larger than the limit") as caught:
        registry.register(too_large)
    assert "run again" in str(caught.value) or "ulimit" in str(caught.value)
    assert list(registry.versions("support")) == []
    assert stored_bytes(small_disk) < MEBIBYTE


def test_after_space_is_freed_the_rerun_registers(small_disk: Path, tmp_path: Path):
    filler = small_disk / "filler"
    filler.write_bytes(b"0" * (5 * MEBIBYTE))
    wanted = candidate(tmp_path / "model", weights=os.urandom(3 * MEBIBYTE))
    registry = open_registry(Settings(home=small_disk))
    if os.path.ismount(small_disk):
        with pytest.raises(PermanentBackendError, match="the disk is full"):
            registry.register(wanted)
    filler.unlink()
    assert registry.register(wanted).version == 1
    assert verify_fetched(registry, ModelRef.parse("support:1"), tmp_path) == wanted.weights_digest


MOVE = """
import os, sys
from pathlib import Path
from leitstand.settings import Settings
from leitstand.types import ModelRef
from models.registry.opening import open_registry
registry = open_registry(Settings(home=Path(sys.argv[1])))
for number in range(10**6):
    ref = ModelRef(name="support", version=1 + number % 2)
    registry.set_alias(ref, "champion", actor="loop", reason=str(number))
    print(number, flush=True)
"""


@pytest.mark.parametrize("after_moves", [1, 2])
def test_an_alias_and_its_entry_move_together_whenever_the_mover_is_killed(
    home: Path, tmp_path: Path, after_moves: int
):
    registry = open_registry(Settings(home=home))
    for number in (1, 2):
        registry.register(candidate(tmp_path / str(number), weights=b"%d" % number))
    mover = start(home, code=MOVE)
    assert mover.stdout
    for _ in range(after_moves):
        mover.stdout.readline()
    ledger = open_ledger(Settings(home=home))
    wait_for(lambda: len(ledger.pending()) > 0)
    mover.send_signal(signal.SIGKILL)
    mover.communicate()

    holder = registry.get(ModelRef.parse("support@champion")).version
    assert list(ledger.pending()) == []
    assert ledger.entries("support")[-1].version == holder
    registry.verify_moves("support")
    ledger.verify()


def test_an_alias_moved_behind_the_ledgers_back_is_found(home: Path, tmp_path: Path):
    from mlflow import MlflowClient

    registry = open_registry(Settings(home=home))
    for number in (1, 2):
        registry.register(candidate(tmp_path / str(number), weights=b"%d" % number))
    registry.set_alias(ModelRef.parse("support:1"), "champion", actor="ada", reason="first")
    registry.verify_moves("support")
    uri = f"sqlite:///{home}/mlflow/registry.db"
    MlflowClient(tracking_uri=uri, registry_uri=uri).set_registered_model_alias("support", "champion", "2")
    with pytest.raises(IntegrityError, match="support@champion"):
        registry.verify_moves("support")


def test_a_ledger_put_back_to_an_older_state_is_found(home: Path, tmp_path: Path):
    settings = Settings(home=home)
    registry = open_registry(settings)
    version = registry.register(candidate(tmp_path / "model"))
    file = home / "registry" / "ledger.db"
    registry.set_alias(version.ref, "challenger", actor="ada", reason="first")
    with_first = sqlite_copy(file, tmp_path / "old.db")
    registry.set_alias(version.ref, "champion", actor="ada", reason="second")
    registry.remove_alias("support", "champion", actor="ada", reason="third")
    for path in file.parent.glob("ledger.db*"):
        path.unlink()
    shutil.copyfile(with_first, file)
    with pytest.raises(IntegrityError, match="entry 3"):
        open_registry(settings).verify_moves("support")


def sqlite_copy(source: Path, target: Path) -> Path:
    import sqlite3

    with sqlite3.connect(source) as connection:
        connection.execute("VACUUM INTO ?", (str(target),))
    connection.close()
    return target
