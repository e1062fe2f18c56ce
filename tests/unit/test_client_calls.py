"""What the client makes of answers, and when it asks again."""

import json
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from leitstand import client_calls
from leitstand import client_types as types
from leitstand.client_calls import Retries
from leitstand.errors import PermanentBackendError

ANSWER = {
    "request_id": "r-1", "use_case": "support", "version": 3, "route": "canary", "new": "ignored",
    "predictions": [{"label": "card", "score": 0.9, "abstain": False, "top": [{"label": "card", "score": 0.9}]}],
}  # fmt: skip


def predict() -> client_calls.Call[types.Answer]:
    return client_calls.predict("support", ["a"], top_k=3, subject="s", request_id="r-1")


def read(status: int, document: Any, **headers: str) -> types.Answer:
    return client_calls.read(
        predict(), status, {k.replace("_", "-"): v for k, v in headers.items()}, json.dumps(document).encode()
    )


def test_an_answer_is_typed_and_newer_fields_are_ignored() -> None:
    answer = read(200, ANSWER, x_leitstand_overhead_ms="1.5", x_leitstand_cost="0.000002")
    assert (answer.label, answer.version, answer.route, answer.overhead_ms) == ("card", 3, "canary", 1.5)
    assert answer.cost == "0.000002" and answer.predictions[0].top[0].score == 0.9


@pytest.mark.parametrize(
    ("status", "more", "kind"),
    [
        (400, {}, types.InvalidRequest), (413, {}, types.InvalidRequest), (422, {}, types.InvalidRequest),
        (401, {}, types.NotAuthenticated), (403, {}, types.Forbidden),
        (403, {"reasons": ["pii.iban"]}, types.ContentRefused), (404, {}, types.NotFound), (409, {}, types.Conflict),
        (429, {"limit": "user:requests"}, types.LimitReached), (500, {}, types.Unavailable),
        (503, {}, types.Unavailable), (504, {}, types.Unavailable), (301, {}, types.GatewayProblem),
    ],
)  # fmt: skip
def test_problems_are_told_apart(status: int, more: dict[str, Any], kind: type[types.GatewayProblem]) -> None:
    problem = {"detail": "it is so", "hint": "do this", "request_id": "r-9"} | more
    with pytest.raises(kind) as raised:
        read(status, problem, retry_after="7")
    error = raised.value
    assert type(error) is kind and (error.status, error.message, error.hint) == (status, "it is so", "do this")
    assert (error.request_id, error.retry_after_s) == ("r-9", 7.0)
    assert getattr(error, "reasons", ("pii.iban",)) == ("pii.iban",)
    assert getattr(error, "limit", "user:requests") == "user:requests"


@pytest.mark.parametrize("body", [b"", b"<html>", b"[]", b"null", b'{"request_id": 5}'])
def test_what_is_no_answer_of_a_gateway_is_said(body: bytes) -> None:
    with pytest.raises(PermanentBackendError, match="not one of a gateway"):
        client_calls.read(predict(), 200, {}, body)
    with pytest.raises(types.Unavailable):
        client_calls.read(predict(), 502, {}, body)


def test_a_date_to_come_back_at_is_understood() -> None:
    later = format_datetime(datetime.now(UTC) + timedelta(seconds=60))
    with pytest.raises(types.Unavailable) as raised:
        read(503, {}, retry_after=later)
    assert raised.value.retry_after_s is not None and 50 < raised.value.retry_after_s <= 60


def test_repeated_calls_change_nothing_twice() -> None:
    feedback = client_calls.feedback("support", "r-1", source="agent", label="card", rating=None)
    assert feedback.body is not None and feedback.body["feedback_id"] and "rating" not in feedback.body
    job = client_calls.submit("support", ["a"], top_k=3, subject="", priority="low", idempotency_key="")
    assert job.headers["idempotency-key"]


def test_names_stay_inside_their_place_of_the_path() -> None:
    assert client_calls.job("a/../b", "x?y#z").path == "/v1/a%2F..%2Fb/jobs/x%3Fy%23z"
    with pytest.raises(ValueError, match="name"):
        client_calls.job("", "x")


@given(st.floats(0, 100), st.integers(1, 10), st.sampled_from([400, 401, 403, 404, 429, 500, 502, 503, 504]))
def test_only_what_may_pass_is_asked_again_and_never_too_early(told: float, attempt: int, status: int) -> None:
    rules = Retries(attempts=5, longest_s=20)
    pause = rules.pause_s(types.GatewayProblem(status, "x", retry_after_s=told), attempt)
    if status not in (429, 503) or attempt >= 5 or told > 20:
        assert pause is None
    else:
        assert pause is None or told <= pause <= 20


def test_a_broken_connection_is_tried_again() -> None:
    assert Retries().pause_s(types.GatewayUnreachable("x"), 1) is not None
    assert Retries(attempts=1).pause_s(types.GatewayUnreachable("x"), 1) is None
