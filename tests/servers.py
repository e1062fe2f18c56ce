"""Real servers for tests: each is started once per session on free loopback ports and ended by its id."""

import glob
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from leitstand.settings import S3Settings

ACCESS_KEY = "leitstand-tests"
SECRET_KEY = "only-for-this-machine"
START_DEADLINE_S = 60


@dataclass(frozen=True)
class S3Server:
    """A running S3 server and an empty bucket in it."""

    settings: S3Settings
    bucket: str

    @property
    def uri(self) -> str:
        return f"s3://{self.bucket}"

    def prefix(self) -> str:
        """An ``s3://`` prefix that no other test uses."""
        return f"{self.uri}/{uuid.uuid4().hex[:12]}"


def free_ports(count: int) -> list[int]:
    """Ports that nothing listens on right now."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def wait_until(ready: Callable[[], bool], process: subprocess.Popen[bytes], log: Path, what: str) -> None:
    """Polls until `ready()`; fails with the end of the log when the process ends or the deadline passes."""
    deadline = time.monotonic() + START_DEADLINE_S
    while not ready():
        if process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"{what} did not start:\n{log.read_text(errors='replace')[-3000:]}")
        time.sleep(0.05)


@contextmanager
def running(
    command: list[str], log: Path, env: dict[str, str] | None = None, user: str | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """Runs a server for the length of the block. It is killed: it holds nothing worth keeping."""
    with log.open("wb") as out:
        process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, env=env, user=user)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


@contextmanager
def aws_credentials(access_key: str = ACCESS_KEY, secret_key: str = SECRET_KEY) -> Iterator[None]:
    """Sets the credentials of boto3's chain, and keeps it away from this machine's own."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN"):
            patch.delenv(name, raising=False)
        patch.setenv("AWS_ACCESS_KEY_ID", access_key)
        patch.setenv("AWS_SECRET_ACCESS_KEY", secret_key)
        patch.setenv("AWS_CONFIG_FILE", os.devnull)
        patch.setenv("AWS_SHARED_CREDENTIALS_FILE", os.devnull)
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        yield


@contextmanager
def seaweedfs(folder: Path) -> Iterator[S3Settings]:
    """SeaweedFS with one identity, so that a wrong key or signature is refused."""
    ports = free_ports(8)
    identity = {
        "name": "tests",
        "credentials": [{"accessKey": ACCESS_KEY, "secretKey": SECRET_KEY}],
        "actions": ["Admin", "Read", "Write", "List", "Tagging"],
    }
    (folder / "s3.json").write_text(json.dumps({"identities": [identity]}))
    names = ("master", "volume", "filer", "s3")
    addresses = [f"-{name}.port={ports[2 * i]}" for i, name in enumerate(names)]
    addresses += [f"-{name}.port.grpc={ports[2 * i + 1]}" for i, name in enumerate(names)]
    command = [
        str(Path(sys.executable).with_name("weed")), "-logtostderr=true", "server", f"-dir={folder}",
        "-ip=127.0.0.1", "-ip.bind=127.0.0.1", *addresses, "-filer", "-s3", f"-s3.config={folder / 's3.json'}",
        "-s3.iam=false", "-s3.port.iceberg=0", "-s3.port.lance=0", "-master.telemetry=false",
        "-volume.max=30", "-master.volumeSizeLimitMB=64", f"-filer.localSocket={folder / 'filer.sock'}",
    ]  # fmt: skip
    settings = S3Settings(endpoint_url=f"http://127.0.0.1:{ports[6]}", multipart_bytes=5 * 2**20)
    with running(command, folder / "log") as process:
        client = _client(settings)
        wait_until(lambda: _takes_objects(client), process, folder / "log", "SeaweedFS")
        yield settings


def _client(settings: S3Settings) -> Any:
    import boto3
    from botocore.config import Config

    config = Config(connect_timeout=1, read_timeout=5, retries={"max_attempts": 1}, s3={"addressing_style": "path"})
    return boto3.client(
        "s3", endpoint_url=settings.endpoint_url, region_name=settings.region, config=config,
        aws_access_key_id=ACCESS_KEY, aws_secret_access_key=SECRET_KEY,
    )  # fmt: skip


def _takes_objects(client: Any) -> bool:
    """Whether a bucket can be made and written: the gateway answers before its volumes do."""
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        client.create_bucket(Bucket="leitstand")
    except ClientError as error:
        if error.response["Error"]["Code"] not in ("BucketAlreadyExists", "BucketAlreadyOwnedByYou"):
            return False
    except BotoCoreError:
        return False
    try:
        client.put_object(Bucket="leitstand", Key="ready", Body=b"1")
        client.delete_object(Bucket="leitstand", Key="ready")
    except (ClientError, BotoCoreError):
        return False
    return True


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """A real S3 server with a bucket; boto3's credentials are set for the rest of the session."""
    with aws_credentials(), seaweedfs(tmp_path_factory.mktemp("seaweedfs")) as settings:
        yield S3Server(settings, "leitstand")


@pytest.fixture(scope="session")
def mlflow_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty MLflow database: creating its tables takes four seconds, copying the file none."""
    from leitstand.settings import Settings
    from models.registry.opening import open_registry

    home = tmp_path_factory.mktemp("mlflow")
    assert open_registry(Settings(home=home)).names() == []
    return home / "mlflow" / "registry.db"


def postgres_tool(name: str) -> str:
    """Path of a PostgreSQL program; Debian keeps servers off PATH."""
    found = shutil.which(name) or next(iter(sorted(glob.glob(f"/usr/lib/postgresql/*/bin/{name}"), reverse=True)), None)
    assert found, f"PostgreSQL's {name} is missing: `make test` installs it where apt-get works"
    return found


@dataclass(frozen=True)
class PostgresServer:
    """A running PostgreSQL; each test takes databases of its own."""

    address: str

    def uri(self, database: str) -> str:
        return f"postgresql+psycopg://{self.address}/{database}"

    def execute(self, statement: str) -> None:
        """Runs one statement outside any transaction, as the owner."""
        import psycopg

        with psycopg.connect(f"postgresql://{self.address}/postgres", autocommit=True) as connection:
            connection.execute(statement)

    def fresh(self) -> str:
        """SQLAlchemy's URI of a new database with MLflow's empty tables; needs the fixture `postgres`."""
        return self.uri(self._create("TEMPLATE mlflow"))

    def database(self) -> str:
        """URI of a new and empty database."""
        return f"postgresql://{self.address}/{self._create()}"

    def _create(self, options: str = "") -> str:
        name = f"t{uuid.uuid4().hex}"
        self.execute(f"CREATE DATABASE {name} {options}")
        return name


@pytest.fixture(scope="session")
def empty_postgres() -> Iterator[PostgresServer]:
    """PostgreSQL on a free port; as `nobody` when the tests run as root, which it refuses to be."""
    user = "nobody" if os.geteuid() == 0 else None
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:
        folder, port = Path(name), free_ports(1)[0]
        if user:
            shutil.chown(folder, user)
        data = str(folder / "data")
        options = ["-U", "leitstand", "--auth=trust", "--no-sync", "-E", "UTF8", "--locale=C"]
        subprocess.run(
            [postgres_tool("initdb"), "-D", data, *options],
            check=True, capture_output=True, user=user,
        )  # fmt: skip
        command = [
            postgres_tool("postgres"), "-D", data, "-p", str(port), "-c", "listen_addresses=127.0.0.1",
            "-c", "unix_socket_directories=", "-c", "fsync=off",
        ]  # fmt: skip
        server, log = PostgresServer(f"leitstand@127.0.0.1:{port}"), folder / "log"
        with running(command, log, user=user) as process:
            wait_until(lambda: b"ready to accept connections" in log.read_bytes(), process, log, "PostgreSQL")
            yield server


@pytest.fixture(scope="session")
def postgres(empty_postgres: PostgresServer, tmp_path_factory: pytest.TempPathFactory) -> PostgresServer:
    """PostgreSQL with a database `mlflow` that holds MLflow's empty tables."""
    from leitstand.settings import RegistrySettings, Settings
    from models.registry.opening import open_registry

    server, home = empty_postgres, tmp_path_factory.mktemp("mlflow-postgres")
    server.execute("CREATE DATABASE mlflow")
    registry = open_registry(Settings(home=home, registry=RegistrySettings(uri=server.uri("mlflow"))))
    assert registry.names() == []
    server.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = 'mlflow'")
    return server


@dataclass(frozen=True)
class RedisServer:
    """A running Redis; each test takes a database of its own, by number."""

    port: int
    taken: list[int]

    def database(self) -> str:
        """The URI of an empty database."""
        self.taken.append(len(self.taken))
        return f"redis://127.0.0.1:{self.port}/{self.taken[-1]}"

    @staticmethod
    def client(uri: str) -> Any:
        """A client that forgets its connection after each command."""
        import redis

        return redis.Redis.from_url(uri, single_connection_client=False)


@contextmanager
def redis_running(folder: Path, port: int) -> Iterator["subprocess.Popen[bytes]"]:
    """`redis-server` on loopback, with an append-only file in `folder`, so that it can be killed and started again."""
    command = [
        system_tool("redis-server"), "--port", str(port), "--bind", "127.0.0.1", "--dir", str(folder),
        "--save", "", "--appendonly", "yes", "--appendfsync", "always", "--databases", "256",
    ]  # fmt: skip
    with running(command, folder / "log") as process:
        wait_until(lambda: b"Ready to accept connections" in (folder / "log").read_bytes(), process, folder / "log",
            "Redis")  # fmt: skip
        yield process


def system_tool(name: str) -> str:
    """The path of a program of the system; missing ones are installed by `make test`."""
    found = shutil.which(name)
    assert found, f"{name} is missing; `make test` installs it"
    return found


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """Redis on a free port."""
    (port,) = free_ports(1)
    with redis_running(tmp_path_factory.mktemp("redis"), port):
        yield RedisServer(port, [])
