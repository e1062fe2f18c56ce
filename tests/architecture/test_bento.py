"""What goes into a Bento: exactly what the service imports, and nothing of the batch side."""

from pathlib import Path

import grimp
import pytest

from models.packaging import source_files
from models.requirements import pinned, roots_for

FORBIDDEN = {"prefect", "evidently", "wandb", "mlflow", "mlflow-skinny", "great-expectations", "openlineage-python",
    "pandas", "scikit-learn", "boto3"}  # fmt: skip
PACKAGES = ("leitstand", "governance", "models", "monitors", "services", "flows")
# Imported by name at run time, so the import graph does not show them.
LOG = "governance.inference_log"
DYNAMIC = {"openvino": ["models.engines.openvino", LOG], "torch": ["models.engines.torch", LOG]}


def closure(engine: str) -> set[str]:
    graph = grimp.build_graph(*PACKAGES)
    modules: set[str] = set()
    for start in ["services.predictor", *DYNAMIC[engine]]:
        modules |= {start} | graph.find_upstream_modules(start)
    parents = {name.rpartition(".")[0] for name in modules} - {""}
    return modules | parents


def path_of(module: str, project: Path) -> str:
    file = Path(*module.split("."))
    return str(file / "__init__.py") if (project / file).is_dir() else f"{file}.py"


@pytest.mark.parametrize("engine", ["openvino", "torch"])
def test_the_allow_list_is_the_import_closure(engine: str, project: Path) -> None:
    needed = {path_of(module, project) for module in closure(engine)}
    listed = set(source_files(engine))
    assert needed <= listed, "missing from bentofile.yaml"
    assert listed - needed <= {"models/engines/openvino.py", "models/engines/packing.py"}, "listed, but never imported"


@pytest.mark.parametrize("engine", ["openvino", "torch"])
def test_requirements_are_pinned_and_hold_nothing_of_the_batch_side(engine: str) -> None:
    lines = pinned(roots_for(engine))
    names = {line.partition("==")[0] for line in lines}
    assert all("==" in line for line in lines)
    assert not names & FORBIDDEN
    assert "pyarrow" not in names, "156 MB for an option that is off"
    assert {"bentoml", "uvloop", "httptools", engine} <= names
    if engine == "openvino":
        assert not names & {"torch", "transformers"}
