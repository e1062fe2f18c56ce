"""The demo's folder and use case: nothing else is touched, and what is written is a use case that works."""

import os
from pathlib import Path

import pytest

from flows.demo.automation import NEEDED, deployments
from flows.demo.case import NAME, admit, read_rows, write_case
from flows.demo.place import open_place
from flows.demo.scenario import FAST, FULL, Scenario, draw
from leitstand.errors import ConflictError
from leitstand.settings import isolate_environment
from leitstand.usecase import load
from models.gate_rules import check_gates


def test_a_folder_with_other_files_is_refused_and_stays_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "letters.txt").write_text("mine")
    with pytest.raises(ConflictError, match="not the folder of a demo"):
        open_place(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["letters.txt"]


def test_the_users_settings_and_stores_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LEITSTAND_REGISTRY__URI", "BENTOML_HOME", "PREFECT_API_URL", "WANDB_API_KEY"):
        monkeypatch.setenv(name, "the user's")
    isolate_environment({"LEITSTAND_HOME": "demo"})
    ours = {name for name in os.environ if name.startswith(("LEITSTAND_", "BENTOML_", "PREFECT_", "WANDB_"))}
    monkeypatch.setenv("LEITSTAND_HOME", "")  # so that the fixture takes it away again
    assert ours == {"LEITSTAND_HOME"}


@pytest.mark.parametrize("scenario", [FULL, FAST], ids=lambda scenario: scenario.name)
def test_the_written_use_case_can_be_gated_and_names_only_known_queues(
    scenario: Scenario, project: Path, tmp_path: Path
) -> None:
    source = load(project / "usecases/support/usecase.yaml")
    drawn = draw(read_rows(source), scenario, 17)
    case = write_case(source, tmp_path / NAME, drawn, scenario, port=23_000)
    check_gates(case)
    assert case.serving.port == 23_000
    assert (tmp_path / NAME / "data" / "train.csv").read_text().count("\n") >= len(drawn.base)
    assert case.feedback.approved_labels == ()
    admitted = admit(case, drawn.withheld)
    assert admitted.feedback.approved_labels == drawn.withheld
    assert admitted.model_copy(update={"feedback": case.feedback}) == case


def test_prefect_gets_every_deployment_that_the_loop_needs_and_no_schedule_that_could_judge_the_demos_windows() -> None:
    made = deployments()["deployments"]
    assert {each["entrypoint"] for each in made} == set(NEEDED)
    assert not any("schedules" in each for each in made)
    assert {each["parameters"]["use_case"] for each in made} == {NAME}
