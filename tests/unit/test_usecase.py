"""A use-case file is read whole, and every mistake in it is named with line, key, value and fix."""

from collections.abc import Callable
from pathlib import Path

import pytest

from leitstand.errors import ConfigurationError, NotFoundError
from leitstand.usecase import UseCase, find, load, names

SUPPORT = Path(__file__).parents[2] / "usecases" / "support" / "usecase.yaml"

Edit = Callable[..., Path]


@pytest.fixture
def edited(tmp_path: Path) -> Edit:
    """Writes the support use case with some text replaced; each text must stand in it."""

    def replace(*pairs: tuple[str, str]) -> Path:
        text = SUPPORT.read_text()
        for old, new in pairs:
            assert old in text
            text = text.replace(old, new, 1)
        path = tmp_path / "usecase.yaml"
        path.write_text(text)
        return path

    return replace


def line_of(path: Path, text: str) -> int:
    return next(number for number, line in enumerate(path.read_text().splitlines(), 1) if text in line)


def refused(path: Path) -> str:
    with pytest.raises(ConfigurationError) as caught:
        load(path)
    return str(caught.value)


def test_support_is_complete() -> None:
    use_case = load(SUPPORT)
    assert use_case.name == "support"
    assert set(use_case.training.profiles) == {"full", "quick", "retrain"}
    assert use_case.profile().method == "finetune"
    assert Path(use_case.resolve(use_case.data.train)).is_file()
    assert use_case.resolve("s3://bucket/train.csv") == "s3://bucket/train.csv"


def test_a_value_out_of_bounds_is_named_with_its_line(edited: Edit) -> None:
    path = edited(("seed: 17", "seed: -1"))
    message = refused(path)
    assert f"{path}:{line_of(path, 'seed: -1')}: training.seed: " in message
    assert "greater than or equal to 0 (found -1)" in message


def test_an_unknown_key_gets_the_nearest_known_one(edited: Edit) -> None:
    path = edited(("max_tokens: 128", "max_token: 128"))
    assert f"{path}:{line_of(path, 'max_token:')}: model.max_token: unknown key; did you mean 'max_tokens'?" in refused(
        path
    )


def test_a_missing_key_is_named(edited: Edit) -> None:
    assert "owner: required key is missing; add `owner:` here" in refused(edited(("owner: support-platform\n", "")))


def test_all_mistakes_are_reported_at_once(edited: Edit) -> None:
    message = refused(edited(("seed: 17", "seed: -1"), ("title:", "titel:"), ("port: 3000", "port: 99999")))
    assert "training.seed" in message
    assert "titel: unknown key; did you mean 'title'?" in message
    assert "serving.port" in message


def test_a_key_that_stands_twice_is_refused(edited: Edit) -> None:
    path = edited(("owner: support-platform", "owner: support-platform\nowner: somebody"))
    assert "key 'owner' stands twice (first on line" in refused(path)


def test_text_that_is_not_yaml_names_the_line(tmp_path: Path) -> None:
    path = tmp_path / "usecase.yaml"
    path.write_text("name: support\n  title: [unclosed\n")
    assert f"{path}:2: not valid YAML" in refused(path)
    path.write_text("- a list\n")
    assert "expected a mapping" in refused(path)
    path.write_bytes(b"name: \xff\xfe")
    assert "not UTF-8" in refused(path)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("canary_percent: [1, 5, 25, 50, 100]", "canary_percent: [5, 1, 100]", "must rise from at least 1 to 100"),
        ("canary_percent: [1, 5, 25, 50, 100]", "canary_percent: [1, 50]", "must rise from at least 1 to 100"),
        ("default_profile: full", "default_profile: best", "'best' is not one of: full, quick"),
        ('"My name is {person}. {text}"', '"{text}"', "must hold both {text} and {person}"),
        ("name: support\n", "name: Support Desk\n", "should match pattern"),
    ],
)
def test_a_rule_between_keys_is_explained(edited: Edit, old: str, new: str, message: str) -> None:
    assert message in refused(edited((old, new)))


def test_a_gate_needs_exactly_one_bound(edited: Edit) -> None:
    text = SUPPORT.read_text()
    gate = next(line for line in text.splitlines() if line.startswith("  - {metric: ece"))
    assert "exactly one of `floor` and `ceiling`" in refused(edited((gate, "  - {metric: ece}")))


def test_an_unknown_use_case_lists_those_there_are(project: Path) -> None:
    with pytest.raises(NotFoundError, match="did you mean 'support'"):
        find("suport", project / "usecases")
    assert "support" in names(project / "usecases")


def test_an_unknown_profile_lists_those_there_are() -> None:
    use_case: UseCase = load(SUPPORT)
    with pytest.raises(NotFoundError, match="choose one of: full, quick"):
        use_case.profile("slow")
