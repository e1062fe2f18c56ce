"""Packages a registered version as a Bento: weights into the BentoML store, allow-listed code around them.

The build runs in a child process in a staging folder, so it imports exactly what the Bento will hold.
It is safe to kill: a record is written last, and whatever lies in the stores without its record is
removed and built again. The same version, engine, precision and code give the Bento there is.
"""

import fcntl
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict

from leitstand.errors import IntegrityError, PermanentBackendError
from leitstand.files import digest_file, digest_json, write_text
from leitstand.settings import child_environment
from leitstand.types import ModelVersion, utc_now
from leitstand.usecase import UseCase
from models.accuracy_gate import check_precision
from models.artifact import seal, verify
from models.bento_manifest import ServingManifest
from models.loading import choose_engine
from models.requirements import pinned, roots_for

__all__ = ["BentoRecord", "code_digest", "package", "source_files"]

TREE = Path(__file__).resolve().parent.parent
TORCH_FILES = ("models/encoder.py", "models/engines/torch.py")
BUILD_TIMEOUT_S = 300


class BentoRecord(BaseModel):
    """A Bento that is complete in the local store."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: Literal[1] = 1
    tag: str
    path: Path
    digest: str
    version: int
    engine: str
    precision: str
    weights_digest: str
    accuracy_drop: float | None = None
    built_at: datetime


def package(
    version: ModelVersion,
    model_dir: Path,
    use_case: UseCase,
    *,
    home: Path,
    engine: str | None = None,
    precision: str | None = None,
    sample: tuple[list[str], list[str]] | None = None,
) -> BentoRecord:
    """Builds the Bento of `version`, or returns the one that is there, and makes it `NAME:latest`.

    Args:
        version: The registered version.
        model_dir: Its files; every one is verified.
        use_case: Its limits go into the Bento.
        home: Leitstand's folder; the stores lie in ``home/bentoml``.
        engine: Overrides the use case's engine.
        precision: Overrides the use case's precision.
        sample: Texts and labels to compare a reduced precision on; default: the test split.

    Raises:
        IntegrityError: The files are not those of the version.
        PromotionRejected: A reduced precision costs more accuracy than allowed.
        PermanentBackendError: BentoML could not build.
    """
    if verify(model_dir) != version.weights_digest:
        raise IntegrityError(
            f"{model_dir} does not hold the weights of {version.ref}", hint="fetch the version from the registry"
        )
    chosen = choose_engine(engine or use_case.serving.engine)
    precision = precision or use_case.serving.precision
    store = home / "bentoml"
    with _locked(store):
        key = digest_json([version.model_dump(mode="json", include={"name", "version", "weights_digest"}), chosen,
            precision, code_digest(chosen), use_case.serving.model_dump(mode="json")])  # fmt: skip
        name = use_case.name
        number = f"v{version.version}-{version.weights_digest[7:15]}-{key[7:15]}"
        record_file = store / "records" / f"{name}-{number}.json"
        existing = _read_record(record_file)
        if existing is None:
            _discard(store, name, number)
            drop = check_precision(model_dir, use_case, chosen, precision, home=home, sample=sample)
            model = _import_weights(store, name, number, model_dir, chosen, precision)
            path = _build(store, version, use_case, model, number, chosen, precision)
            existing = BentoRecord(
                tag=f"{name}:{number}", path=path, digest=_tree_digest(path), version=version.version, engine=chosen,
                precision=precision, weights_digest=version.weights_digest, accuracy_drop=drop, built_at=utc_now(),
            )  # fmt: skip
            write_text(record_file, existing.model_dump_json(indent=1))
        write_text(store / "bentos" / name / "latest", number)
    return existing


def source_files(engine: str) -> list[str]:
    """The files of the allow-list that exist in the tree, for one engine."""
    listed = yaml.safe_load((TREE / "bentofile.yaml").read_text())["include"]
    return [name for name in listed if name != "serving.json"] + (list(TORCH_FILES) if engine == "torch" else [])


def code_digest(engine: str) -> str:
    """Digest over the code and the requirements that go into a Bento."""
    files = {name: digest_file(TREE / name) for name in [*source_files(engine), "bentofile.yaml"]}
    return digest_json([files, pinned(roots_for(engine))])


@contextmanager
def _locked(store: Path) -> Iterator[None]:
    """One packaging at a time per store. The lock goes away with the process, however it ends."""
    store.mkdir(parents=True, exist_ok=True)
    with (store / ".package.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _read_record(path: Path) -> BentoRecord | None:
    try:
        record = BentoRecord.model_validate_json(path.read_bytes())
    except (OSError, ValueError):
        return None
    return record if (record.path / "bento.yaml").is_file() else None


def _discard(store: Path, name: str, number: str) -> None:
    """Removes what a killed packaging left."""
    shutil.rmtree(store / "bentos" / name / number, ignore_errors=True)
    shutil.rmtree(store / "models" / f"{name}-weights" / number, ignore_errors=True)


def _import_weights(store: Path, name: str, number: str, model_dir: Path, engine: str, precision: str) -> str:
    """Puts what the engine needs into the BentoML model store and returns the tag."""
    with tempfile.TemporaryDirectory(dir=store, prefix=".weights-") as folder:
        part = Path(folder) / "model"
        part.mkdir()
        names = ["classifier.json", "tokenizer.json"]
        names += ["config.json", "model.safetensors"] if engine == "torch" else []
        for file in names:
            shutil.copy2(model_dir / file, part / file)
        if engine == "openvino":
            from models.engines.openvino import has_native_bf16  # noqa: PLC0415  -- heavy, only this engine
            from models.export import ensure_graph  # noqa: PLC0415

            wanted = ("bf16" if has_native_bf16() else "fp32") if precision == "auto" else precision
            graph = ensure_graph(model_dir, wanted)
            shutil.copytree(graph, part / ("openvino-int8" if wanted == "int8" else "openvino"))
        seal(part)
        tag = f"{name}-weights:{number}"
        code = "import sys, shutil, bentoml\nwith bentoml.models.create(sys.argv[1]) as ref:\n" \
               "    shutil.copytree(sys.argv[2], ref.path, dirs_exist_ok=True)\n"  # fmt: skip
        _bentoml(store, ["-c", code, tag, str(part)], cwd=part)
    verify(store / "models" / f"{name}-weights" / number)
    return tag


def _build(
    store: Path, version: ModelVersion, use_case: UseCase, model: str, number: str, engine: str, precision: str
) -> Path:
    """Runs `bentoml build` in a staging folder and returns the Bento's folder."""
    with tempfile.TemporaryDirectory(prefix="leitstand-bento-") as folder:
        staging = Path(folder)  # not below `store`: BentoML refuses to read below hidden folders like .leitstand
        for name in source_files(engine):
            (staging / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(TREE / name, staging / name)
        write_text(staging / "serving.json", _manifest(version, use_case, model, engine, precision))
        bentofile = _bentofile(version, use_case, engine)
        write_text(staging / "bentofile.yaml", yaml.safe_dump(bentofile, sort_keys=False))
        _bentoml(store, ["-m", "bentoml", "build", "--version", number], cwd=staging)
    path = store / "bentos" / use_case.name / number
    if not (path / "bento.yaml").is_file():
        raise PermanentBackendError(f"BentoML reported success but {path} is not there", hint="run it again")
    return path


def _manifest(version: ModelVersion, use_case: UseCase, model: str, engine: str, precision: str) -> str:
    serving = use_case.serving
    return ServingManifest(
        use_case=use_case.name, version=version.version, title=use_case.title, model_tag=model,
        weights_digest=version.weights_digest, data_digest=version.data_digest, commit=version.commit,
        engine=engine, precision=precision,  # type: ignore[arg-type]
        max_batch_size=serving.max_batch_size, max_queue=serving.max_queue, deadline_ms=serving.deadline_ms,
        max_text_bytes=serving.max_text_bytes,
    ).model_dump_json(indent=1)  # fmt: skip


def _bentofile(version: ModelVersion, use_case: UseCase, engine: str) -> dict[str, Any]:
    bentofile = yaml.safe_load((TREE / "bentofile.yaml").read_text())
    bentofile["name"] = use_case.name
    bentofile["include"] = [*source_files(engine), "serving.json"]
    bentofile["labels"] |= {
        "model_version": str(version.version),
        "commit": version.commit,
        "data_digest": version.data_digest.removeprefix("sha256:"),
        "weights_digest": version.weights_digest.removeprefix("sha256:"),
        "engine": engine,
    }
    bentofile["python"] |= {"packages": pinned(roots_for(engine))}
    return bentofile


def _bentoml(store: Path, arguments: list[str], *, cwd: Path) -> None:
    """Runs Python in a child whose BentoML stores lie in `store`.

    Raises:
        PermanentBackendError: It failed; the message holds the end of its output.
    """
    environment = child_environment(BENTOML_HOME=str(store), BENTOML_DO_NOT_TRACK="True", DO_NOT_TRACK="true")
    done = subprocess.run(
        [sys.executable, *arguments], cwd=cwd, env=environment, capture_output=True, text=True, check=False,
        timeout=BUILD_TIMEOUT_S,
    )  # fmt: skip
    if done.returncode:
        raise PermanentBackendError(
            f"BentoML failed: {(done.stderr or done.stdout)[-1500:].strip()}", hint="mend the cause and package again"
        )


def _tree_digest(folder: Path) -> str:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and "__pycache__" not in path.parts)
    return digest_json({path.relative_to(folder).as_posix(): digest_file(path) for path in files})
