"""Versions and Bentos travel through a real S3 server: whole, checked, and resumed after a kill."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from leitstand.errors import ConfigurationError, IntegrityError, NotFoundError
from leitstand.ports import BlobStore
from leitstand.settings import Settings
from leitstand.types import ModelRef
from models.artifact import verify
from models.blobs.opening import open_location
from models.bundle import pull_version, push_version
from models.registry.opening import open_registry
from tests.fakes import InMemoryRegistry
from tests.models_for_tests import candidate
from tests.servers import S3Server

MEBIBYTE = 2**20
REF = ModelRef.parse("support:1")
PUSH = """
import sys, time
from pathlib import Path
from leitstand.settings import S3Settings
from leitstand.types import ModelRef
from models.blobs.opening import open_location
from models.bundle import push_version
from tests.fakes import InMemoryRegistry
from tests.models_for_tests import candidate
registry = InMemoryRegistry()
version = registry.register(candidate(Path(sys.argv[1])))
settings = S3Settings(endpoint_url=sys.argv[3], multipart_bytes=5 * 2**20)
store = open_location(sys.argv[2], settings)
store._client.meta.events.register("before-call.s3.UploadPart", lambda **_: time.sleep(0.5))  # time to be killed in
push_version(registry, version.ref, store)
"""


@pytest.fixture(params=["folder", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> BlobStore:
    if request.param == "folder":
        return open_location(str(tmp_path / "shared"), Settings(home=tmp_path).s3)
    server: S3Server = request.getfixturevalue("s3_server")
    return open_location(server.prefix(), server.settings)


@pytest.fixture
def source(tmp_path: Path) -> InMemoryRegistry:
    registry = InMemoryRegistry()
    card = tmp_path / "model_card.md"
    card.write_text("# Card")
    registry.register(candidate(tmp_path / "model", attachments={"model_card.md": card}))
    registry.set_alias(REF, "champion", actor="ada", reason="first")
    return registry


def test_a_version_arrives_whole_in_another_registry(
    store: BlobStore, source: InMemoryRegistry, tmp_path: Path, mlflow_database: Path
):
    home = tmp_path / "there"
    (home / "mlflow").mkdir(parents=True)
    shutil.copyfile(mlflow_database, home / "mlflow" / "registry.db")
    target = open_registry(Settings(home=home))
    target.register(candidate(tmp_path / "other", weights=b"other"))

    push_version(source, ModelRef.parse("support@champion"), store)
    pulled = pull_version(target, REF, store, tmp_path / "cache")
    again = pull_version(target, REF, store, tmp_path / "cache")

    assert again == pulled
    assert pulled.version == 2
    sent = source.get(REF)
    for field in ("key", "weights_digest", "data_digest", "commit", "run_id", "metrics", "profile", "attachments"):
        assert getattr(pulled, field) == getattr(sent, field)
    assert pulled.aliases == ()
    target.fetch(pulled.ref, tmp_path / "copy")
    assert verify(tmp_path / "copy") == sent.weights_digest
    assert list((tmp_path / "cache").iterdir()) == []


def test_pushing_again_changes_nothing(store: BlobStore, source: InMemoryRegistry):
    push_version(source, REF, store)
    before = list(store.list())
    push_version(source, REF, store)
    assert list(store.list()) == before


def test_a_bundle_that_is_not_there_lists_those_that_are(store: BlobStore, source: InMemoryRegistry, tmp_path: Path):
    push_version(source, REF, store)
    with pytest.raises(NotFoundError, match=r"versions/support/9\.json(.|\n)*versions/support/1\.json"):
        pull_version(InMemoryRegistry(), ModelRef.parse("support:9"), store, tmp_path / "cache")


def test_changed_bytes_are_refused_by_name_and_nothing_is_registered(
    store: BlobStore, source: InMemoryRegistry, tmp_path: Path
):
    bundle = push_version(source, REF, store)
    forged = tmp_path / "forged"
    forged.write_bytes(b"WEIGHTS")
    store.put_file("files/" + bundle.files["model/model.safetensors"].sha256.removeprefix("sha256:"), forged)
    target = InMemoryRegistry()
    with pytest.raises(IntegrityError, match=r"model/model\.safetensors"):
        pull_version(target, REF, store, tmp_path / "cache")
    assert target.names() == []


def test_an_index_that_points_outside_is_refused(store: BlobStore, source: InMemoryRegistry, tmp_path: Path):
    bundle = push_version(source, REF, store)
    entry = next(iter(bundle.files.values()))
    index = tmp_path / "index.json"
    index.write_text(bundle.model_copy(update={"files": {"../../evil": entry}}).model_dump_json())
    store.put_file(bundle.key, index)
    with pytest.raises(IntegrityError, match="evil"):
        pull_version(InMemoryRegistry(), REF, store, tmp_path / "cache")


def test_a_killed_push_is_invisible_and_its_rerun_sends_only_the_rest(s3_server: S3Server, tmp_path: Path):
    prefix = s3_server.prefix()
    model = tmp_path / "model"
    candidate(model, weights=os.urandom(60 * MEBIBYTE))
    store = open_location(prefix, s3_server.settings)
    held = kill_while_uploading(model, prefix, s3_server, store)
    target = InMemoryRegistry()
    with pytest.raises(NotFoundError):
        pull_version(target, REF, store, tmp_path / "cache")

    sent: list[str] = []
    store._client.meta.events.register("before-call.s3.UploadPart", lambda **_: sent.append("part"))
    source = InMemoryRegistry()
    source.register(candidate(model))
    push_version(source, REF, store)
    assert 0 < len(sent) <= 12 - held
    assert pull_version(target, REF, store, tmp_path / "cache").weights_digest == source.get(REF).weights_digest


def kill_while_uploading(model: Path, prefix: str, server: S3Server, store: BlobStore) -> int:
    """Kills a push once some parts have arrived; returns how many had."""
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", PUSH, str(model), prefix, server.settings.endpoint_url],
        stderr=subprocess.PIPE, cwd=Path(__file__).parents[2],
    )  # fmt: skip
    try:
        deadline = time.monotonic() + 60
        while parts_held(store) < 2:
            assert process.poll() is None, process.communicate()[1]
            assert time.monotonic() < deadline
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    assert process.returncode == -signal.SIGKILL
    held = parts_held(store)
    assert held < 12
    return held


def parts_held(store: BlobStore) -> int:
    bucket, client = store._bucket, store._client
    uploads = client.list_multipart_uploads(Bucket=bucket, Prefix=store._prefix).get("Uploads", [])
    return sum(
        len(client.list_parts(Bucket=bucket, Key=item["Key"], UploadId=item["UploadId"]).get("Parts", []))
        for item in uploads
    )


def test_a_killed_pull_goes_on_with_what_it_has(store: BlobStore, source: InMemoryRegistry, tmp_path: Path):
    """A download that stopped leaves whole files and one part; only what is missing is fetched."""
    push_version(source, REF, store)
    said: list[str] = []

    class Stop(Exception):
        pass

    def stop_at_the_third(message: str) -> None:
        said.append(message)
        if len(said) == 3:
            raise Stop

    with pytest.raises(Stop):
        pull_version(InMemoryRegistry(), REF, store, tmp_path / "cache", stop_at_the_third)
    rest: list[str] = []
    pull_version(InMemoryRegistry(), REF, store, tmp_path / "cache", rest.append)
    assert not set(said[:2]) & set(rest)
    assert rest[0] == said[2]


SERVICE = """
import bentoml

@bentoml.service(name="tiny", image=bentoml.images.Image(lock_python_packages=False))
class Tiny:
    @bentoml.api
    def echo(self, text: str) -> str:
        return text
"""


def test_a_bento_travels_through_s3_and_is_left_alone_when_it_is_there(s3_server: S3Server, tmp_path: Path):
    (tmp_path / "service.py").write_text(SERVICE)
    prefix = s3_server.prefix()

    def run(home: str, *command: str) -> str:
        env = os.environ | {
            "LEITSTAND_HOME": str(tmp_path / home), "BENTOML_HOME": str(tmp_path / home / "bentoml"),
            "BENTOML_DO_NOT_TRACK": "True", "LEITSTAND_S3__ENDPOINT_URL": s3_server.settings.endpoint_url,
        }  # fmt: skip
        done = subprocess.run(
            [sys.executable, "-m", *command], cwd=tmp_path, env=env, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    run("here", "bentoml", "build", "service:Tiny", "--version", "v1")
    assert run("here", "leitstand.cli", "bundle", "push", "tiny:v1", prefix, "--bento").strip() == (
        f"{prefix}/bentos/tiny/v1.json"
    )
    for _ in range(2):
        assert run("there", "leitstand.cli", "bundle", "pull", prefix, "tiny:v1", "--bento").strip() == "tiny:v1"
    assert (tmp_path / "there" / "bentoml" / "bentos" / "tiny" / "v1" / "bento.yaml").is_file()


def test_a_bento_is_named_by_its_whole_tag(store: BlobStore, tmp_path: Path):
    from models.bundle import pull_bento

    with pytest.raises(ConfigurationError, match="NAME:VERSION"):
        pull_bento("tiny", store, tmp_path)
