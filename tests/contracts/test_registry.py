"""What every model registry promises.

The fake; MLflow on SQLite with local files and with files on S3; MLflow on PostgreSQL where that is installed;
and the W&B adapter over a stand-in of the cloud: what W&B's own service does is not tested here.
"""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from leitstand.errors import ConfigurationError, ConflictError, IntegrityError, NotFoundError
from leitstand.ports import ModelRegistry
from leitstand.settings import RegistrySettings, Settings
from leitstand.types import ModelCandidate, ModelRef
from models.artifact import verify
from models.ledger import open_ledger
from models.registry.opening import open_registry
from models.registry.wandb import WandbRegistry
from tests.fakes import InMemoryRegistry, InMemoryWandb
from tests.models_for_tests import candidate
from tests.servers import S3Server

Make = Callable[..., ModelCandidate]
CHAMPION = ModelRef.parse("support@champion")


@pytest.fixture
def make(tmp_path: Path) -> Make:
    def write(weights: bytes = b"weights", **more: object) -> ModelCandidate:
        return candidate(tmp_path / f"model-{weights.hex()}", weights=weights, **more)

    return write


ADAPTERS = ["memory", "wandb", "mlflow", "mlflow+s3", "mlflow+postgres"]


@pytest.fixture(params=ADAPTERS)
def settings(request: pytest.FixtureRequest, tmp_path: Path, mlflow_database: Path) -> Settings | None:
    if request.param == "memory":
        return None
    home = tmp_path / "home"
    if request.param == "wandb":
        return Settings(home=home, registry=RegistrySettings(kind="wandb", entity="team"))
    (home / "mlflow").mkdir(parents=True)
    (home / "mlflow" / "registry.db").write_bytes(mlflow_database.read_bytes())
    if request.param == "mlflow":
        return Settings(home=home)
    if request.param == "mlflow+postgres":
        return Settings(home=home, registry=RegistrySettings(uri=request.getfixturevalue("postgres").fresh()))
    server: S3Server = request.getfixturevalue("s3_server")
    return Settings(home=home, s3=server.settings, registry=RegistrySettings(artifacts=server.prefix()))


@pytest.fixture
def registry(settings: Settings | None) -> ModelRegistry:
    return open_(settings, InMemoryWandb()) if settings else InMemoryRegistry()


def open_(settings: Settings, cloud: InMemoryWandb) -> ModelRegistry:
    """As `open_registry`, with W&B's cloud replaced by a stand-in."""
    if settings.registry.kind == "wandb":
        return WandbRegistry(cloud, open_ledger(settings), settings.root / "registry")
    return open_registry(settings)


def test_a_version_comes_back_with_its_facts_and_files(registry: ModelRegistry, make: Make, tmp_path: Path):
    wanted = make()
    version = registry.register(wanted)
    assert (version.version, version.aliases, version.attachments) == (1, (), ())
    assert version.created_at > datetime.now(UTC) - timedelta(minutes=5)
    for field in ("name", "key", "weights_digest", "data_digest", "commit", "run_id", "tracking_url", "metrics"):
        assert getattr(version, field) == getattr(wanted, field)
    assert registry.get(version.ref) == version
    assert registry.fetch(version.ref, tmp_path / "copy") == version
    assert verify(tmp_path / "copy") == wanted.weights_digest
    assert (tmp_path / "copy" / "tokenizer" / "tokenizer.json").is_file()


def test_the_same_candidate_registers_once(registry: ModelRegistry, make: Make):
    assert registry.register(make()) == registry.register(make())
    assert len(registry.versions("support")) == 1


def test_numbers_rise_and_versions_are_listed_newest_first(registry: ModelRegistry, make: Make):
    for weights in (b"one", b"two", b"three"):
        registry.register(make(weights))
    assert [version.version for version in registry.versions("support")] == [3, 2, 1]
    assert registry.names() == ["support"]


def test_names_do_not_mix(registry: ModelRegistry, make: Make):
    registry.register(make(b"one"))
    registry.register(make(b"two", name="finance"))
    assert registry.names() == ["finance", "support"]
    assert [version.version for version in registry.versions("finance")] == [1]
    assert registry.versions("unknown") == []


@pytest.mark.parametrize("ref", ["support:7", "unknown:1", "support@champion"])
def test_what_is_not_there_is_named(registry: ModelRegistry, make: Make, ref: str):
    registry.register(make())
    with pytest.raises(NotFoundError, match=ref):
        registry.get(ModelRef.parse(ref))


def test_truncated_weights_are_refused_by_file_name(registry: ModelRegistry, make: Make):
    wanted = make()
    (wanted.model_dir / "model.safetensors").write_bytes(b"wei")
    with pytest.raises(IntegrityError, match=r"model\.safetensors"):
        registry.register(wanted)
    assert registry.versions("support") == []


def test_attachments_are_kept_and_can_be_added_but_not_changed(registry: ModelRegistry, make: Make, tmp_path: Path):
    report, card = tmp_path / "gate_report.json", tmp_path / "card.md"
    report.write_text("{}")
    card.write_text("# Card")
    version = registry.register(make(attachments={"gate_report.json": report}))
    registry.attach(version.ref, {"model_card.md": card})
    registry.attach(version.ref, {"model_card.md": card})
    assert registry.get(version.ref).attachments == ("gate_report.json", "model_card.md")
    assert registry.attachment(version.ref, "model_card.md", tmp_path / "out").read_text() == "# Card"
    card.write_text("# Other")
    with pytest.raises(ConflictError, match=r"model_card\.md"):
        registry.attach(version.ref, {"model_card.md": card})
    assert registry.attachment(version.ref, "model_card.md", tmp_path / "out").read_text() == "# Card"
    with pytest.raises(NotFoundError, match=r"missing\.txt"):
        registry.attachment(version.ref, "missing.txt", tmp_path / "out")


def test_an_attachment_with_a_path_for_a_name_is_refused(registry: ModelRegistry, make: Make, tmp_path: Path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(ConfigurationError, match=r"\.\./file"):
        registry.register(make(attachments={"../file": tmp_path / "file"}))


def test_an_alias_moves_with_an_entry_that_says_why(registry: ModelRegistry, make: Make):
    one, two = registry.register(make(b"one")), registry.register(make(b"two"))
    first = registry.set_alias(one.ref, "champion", actor="ada", reason="first", evidence="sha256:1")
    second = registry.set_alias(two.ref, "champion", actor="bob", reason="better")
    assert (first.sequence, first.version, first.previous, first.actor, first.evidence) == (
        1,
        1,
        None,
        "ada",
        "sha256:1",
    )
    assert (second.sequence, second.version, second.previous, second.reason) == (2, 2, 1, "better")
    assert second.previous_hash == first.hash
    assert registry.get(CHAMPION).version == 2
    assert [version.aliases for version in registry.versions("support")] == [("champion",), ()]


def test_an_alias_that_does_not_move_leaves_no_second_entry(registry: ModelRegistry, make: Make):
    version = registry.register(make())
    first = registry.set_alias(version.ref, "champion", actor="ada", reason="first")
    assert registry.set_alias(version.ref, "champion", actor="bob", reason="again") == first


def test_an_alias_can_be_removed_once(registry: ModelRegistry, make: Make):
    version = registry.register(make())
    registry.set_alias(version.ref, "champion", actor="ada", reason="first")
    entry = registry.remove_alias("support", "champion", actor="ada", reason="withdrawn")
    assert (entry.version, entry.previous) == (None, 1)
    assert registry.get(version.ref).aliases == ()
    with pytest.raises(NotFoundError, match="champion"):
        registry.remove_alias("support", "champion", actor="ada", reason="twice")


def test_an_alias_of_a_missing_version_leaves_no_trace(registry: ModelRegistry, make: Make, settings: Settings | None):
    registry.register(make())
    with pytest.raises(NotFoundError):
        registry.set_alias(ModelRef.parse("support:9"), "champion", actor="ada", reason="wrong")
    moves = open_ledger(settings).entries() if settings else registry.moves
    assert list(moves) == []


def test_another_process_sees_what_was_registered(registry: ModelRegistry, make: Make, settings: Settings | None):
    version = registry.register(make())
    registry.set_alias(version.ref, "champion", actor="ada", reason="first")
    other = open_(settings, getattr(registry, "_calls", InMemoryWandb())) if settings else registry
    assert other.get(CHAMPION) == registry.get(version.ref)
