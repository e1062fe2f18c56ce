"""How an OpenAI-compatible API stands in a route table."""

import pytest

from governance.routes.tables import stored
from governance.routes.targets import read_target, write_target
from leitstand.errors import ConfigurationError
from leitstand.types import RouteTable, Target
from tests.gateway_for_tests import CANARY, table

API = Target(version=2, url="https://api.example/v1", kind="openai", model="org/small-3", key="example")


def openai_table(**changes: object) -> RouteTable:
    return table(**{"stable": API} | changes)


@pytest.mark.parametrize(
    ("text", "target"),
    [
        ("7=http://127.0.0.1:3000/", Target(version=7, url="http://127.0.0.1:3000")),
        ("2=openai+https://api.example/v1/?model=org/small-3&key=example", API),
        ("2=openai+https://api.example/v1?model=a%26b", API.model_copy(update={"model": "a&b", "key": ""})),
    ],
)
def test_what_is_read_is_written_back(text: str, target: Target) -> None:
    assert read_target(text) == target
    assert read_target(write_target(target)) == target


@pytest.mark.parametrize(
    "text",
    [
        "", "7", "x=http://a", "7=ftp://a", "2=openai+https://api/v1", "2=openai+https://api/v1?model=",
        "2=openai+https://?model=a", "2=openai+https://api/v1?model=a&model=b", "2=openai+https://api/v1?model=a&x=1",
        "2=openai+https://api/v1?model=a&key=NOT A NAME", "2=openai+https://api/v1?model=" + "a" * 300,
    ],
)  # fmt: skip
def test_what_is_no_target_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(ConfigurationError, match="VERSION=URL"):
        read_target(text)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"canary": CANARY}, "speaks v2"),
        ({"stable": API.model_copy(update={"model": ""})}, "names no model"),
        ({"stable": API.model_copy(update={"url": "https://user:secret@api.example/v1"})}, "more than host and path"),
        ({"stable": API.model_copy(update={"url": "https://api.example/v1?token=secret"})}, "more than host and path"),
        ({"stable": CANARY.model_copy(update={"key": "example"})}, "names a model or key"),
    ],
)
def test_a_table_that_cannot_work_or_holds_a_credential_is_not_stored(changes: dict, reason: str) -> None:
    with pytest.raises(ConfigurationError, match=reason):
        stored(openai_table(**changes), 0)


def test_targets_of_an_api_are_stored_and_read_again() -> None:
    made = stored(openai_table(canary=API.model_copy(update={"version": 3})), 0)
    assert RouteTable.model_validate_json(made.model_dump_json()) == made
