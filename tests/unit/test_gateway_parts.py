"""Small parts of the gateway: ids, problems, feedback, the protocol's client side."""

import time
import uuid
from datetime import UTC, datetime

import numpy as np
import orjson
import pytest

from leitstand.errors import ConfigurationError, ConflictError, NotFoundError, PermanentBackendError, PolicyDenied
from services.batching import Answer
from services.errors import HttpError
from services.feedback import take_feedback
from services.gateway_metrics import JUDGED
from services.inference_protocol import decode_request, encode_response
from services.problems import problem_for, protocol_error
from services.recent import RecentAnswer, RecentRequests
from services.recording import pseudonym
from services.request_ids import made_at, new_request_id, request_id_from
from services.scheduling import Overloaded
from services.schemas import FeedbackRequest
from services.upstream_codec import ALWAYS, VECTORS, decode_answer, encode_texts
from services.upstreams import UpstreamFailed
from tests.fakes import InMemoryFeedbackLog

LABELS = ("card", "pin")


def test_ids_are_unique_sort_by_time_and_tell_it() -> None:
    ids = [new_request_id() for _ in range(100)]
    assert len(set(ids)) == 100
    assert {uuid.UUID(each).version for each in ids} == {7}
    made = [made_at(each) or 0 for each in ids]
    assert made == sorted(made)
    assert abs(made[-1] - time.time()) < 60
    assert made_at("order-17") is None and made_at(str(uuid.uuid4())) is None


@pytest.mark.parametrize("given", [b"", b"a b", b"x" * 129, b"\xff", b"a\nb", b"-", b"<script>"])
def test_an_id_that_could_harm_a_log_is_replaced(given: bytes) -> None:
    assert request_id_from(given) != given.decode("latin-1")


def test_a_callers_id_is_kept() -> None:
    assert request_id_from(b"order-17:3.a_b") == "order-17:3.a_b"


def test_pseudonyms_need_the_key() -> None:
    assert pseudonym("a@example.org", b"") == "" == pseudonym("", b"key")
    assert pseudonym("a@example.org", b"key") != pseudonym("a@example.org", b"other")
    assert pseudonym("a@example.org", b"key") == pseudonym("a@example.org", b"key")


@pytest.mark.parametrize("outputs", [ALWAYS, (*ALWAYS, *VECTORS)])
@pytest.mark.parametrize("binary", [True, False])
def test_what_the_server_writes_is_what_the_client_reads(outputs: tuple[str, ...], binary: bool) -> None:
    texts = ["My card is löst", 'a "quoted" text\n']
    body = encode_texts(texts, outputs)
    if not binary:
        body = body.replace(b"true", b"false")
    request = decode_request(body, None, 1000)
    assert request.texts == texts
    answers = [
        Answer(label, score, score < 0.5, np.array([score, 1 - score], np.float32), np.full(4, score, np.float32))
        for label, score in (("card", 0.75), ("pïn", 0.25))
    ]
    read = decode_answer(*encode_response("support", "7", request, answers))
    assert (read.version, read.labels, read.scores, read.abstain) == (
        7, ["card", "pïn"], [0.75, 0.25], [False, True],
    )  # fmt: skip
    if len(outputs) > 3:
        np.testing.assert_array_equal(read.probabilities, [[0.75, 0.25], [0.25, 0.75]])
        np.testing.assert_array_equal(read.embedding, [[0.75] * 4, [0.25] * 4])


@pytest.mark.parametrize(
    ("body", "head"),
    [
        (b"", None), (b"[]", None), (b"{}", None), (b'{"outputs": 3}', None), (b"null", None), (b"\xff", None),
        (b'{"outputs":[{"name":"score","datatype":"FP32","shape":[2],"parameters":{"binary_data_size":8}}]}1234', 96),
        (b'{"outputs":[{"name":"label","datatype":"BYTES","shape":[1],"parameters":{"binary_data_size":3}}]}abc', 97),
        (b'{"outputs":[{"name":"score","datatype":"FP32","shape":[1],"parameters":{"binary_data_size":"x"}}]}', 99),
        (b'{"outputs":[{"name":"score","datatype":"FP32","shape":[1],"parameters":{"binary_data_size":-4}}]}', 98),
        (b'{"outputs":[{"name":"score","datatype":"FP8","shape":[1],"parameters":{"binary_data_size":4}}]}1234', 95),
        (b'{"outputs":[{"name":"label","data":["a"],"shape":[1]},{"name":"score","data":[1,1],"shape":[2]}]}', None),
    ],
)  # fmt: skip
def test_an_unreadable_answer_is_an_error_of_the_upstream(body: bytes, head: int | None) -> None:
    with pytest.raises(PermanentBackendError):
        decode_answer(body, head)


@pytest.mark.parametrize(
    ("error", "status", "retry"),
    [
        (NotFoundError("no such thing", hint="look elsewhere"), 404, None),
        (ConflictError("two"), 409, None),
        (PolicyDenied("no"), 403, None),
        (ConfigurationError("wrong"), 400, None),
        (HttpError(413, "big"), 413, None),
        (Overloaded("full", 2.4), 503, b"2"),
        (UpstreamFailed("x", "refused"), 503, b"1"),
        (UpstreamFailed("x", "busy", retry_after_s=7), 503, b"7"),
        (UpstreamFailed("x", "timeout"), 504, None),
        (UpstreamFailed("x", "garbled"), 502, None),
        (PermanentBackendError("disk"), 500, None),
        (RuntimeError("a secret"), 500, None),
    ],
)
def test_errors_become_problems(error: Exception, status: int, retry: bytes | None) -> None:
    code, headers, body = problem_for(error, "r-1")
    document = orjson.loads(body)
    assert (code, document["status"], document["request_id"]) == (status, status, "r-1")
    assert {"type", "title", "detail"} <= set(document)
    assert dict(headers).get(b"retry-after") == retry
    assert b"secret" not in body
    code, headers, body = protocol_error(error)
    assert code == status and set(orjson.loads(body)) == {"error"}


@pytest.fixture
def recent() -> RecentRequests:
    index = RecentRequests(limit=2)
    index.add("r-1", RecentAnswer("support", 2, 7, "canary", ("pin", "card")))
    index.add("r-2", RecentAnswer("finance", 1))
    return index


def say(log: InMemoryFeedbackLog, recent: RecentRequests, **said: object):
    request = FeedbackRequest.model_validate({"request_id": "r-1", "label": "pin", "source": "agent-7"} | said)
    return take_feedback(log, recent, "support", request, LABELS)


def test_feedback_is_recorded_with_its_time_and_id(recent: RecentRequests) -> None:
    log = InMemoryFeedbackLog()
    taken = say(log, recent, index=1, rating=-1)
    assert taken.recorded and taken.known
    (entry,) = log.entries("support")
    assert (entry.request_id, entry.index, entry.label, entry.rating, entry.source) == ("r-1", 1, "pin", -1, "agent-7")
    assert entry.feedback_id == taken.feedback_id and entry.at == taken.at


@pytest.mark.parametrize(
    ("first", "outcome"),
    [
        ({"label": "pin"}, "right"),
        ({"label": "card"}, "wrong"),
        ({"label": None, "rating": -1}, "wrong"),
        ({"label": None, "rating": 1}, "right"),
        ({"label": "card", "rating": 1}, "wrong"),
        ({"label": None, "rating": 0}, None),
    ],
)
def test_the_first_word_about_an_answer_is_counted_for_its_version(
    recent: RecentRequests, first: dict[str, object], outcome: str | None
) -> None:
    def counts() -> dict[str, float]:
        return {
            name: JUDGED.labels("support", "7", "canary", name)._value.get()  # the library offers no reading
            for name in ("right", "wrong")
        }

    before, log = counts(), InMemoryFeedbackLog()
    say(log, recent, **first)
    say(log, recent, feedback_id="f-later", label="card", source="agent-8")
    grown = {name: value - before[name] for name, value in counts().items()}
    assert grown == {name: float(name == (outcome or "wrong")) for name in ("right", "wrong")}


@pytest.mark.parametrize("at", [None, datetime(2026, 1, 1, tzinfo=UTC)])
def test_the_same_feedback_again_changes_nothing(recent: RecentRequests, at: datetime | None) -> None:
    log = InMemoryFeedbackLog()
    first = say(log, recent, feedback_id="f-1", at=at)
    again = say(log, recent, feedback_id="f-1", at=at)
    assert first.recorded and not again.recorded
    assert again.at == first.at and len(log.kept) == 1


def test_one_id_for_two_statements_is_a_conflict(recent: RecentRequests) -> None:
    log = InMemoryFeedbackLog()
    say(log, recent, feedback_id="f-1")
    with pytest.raises(ConflictError):
        say(log, recent, feedback_id="f-1", label="card")


def test_a_label_that_the_model_does_not_have_is_named(recent: RecentRequests) -> None:
    with pytest.raises(HttpError, match="'pni' is none of the 2 labels") as caught:
        say(InMemoryFeedbackLog(), recent, label="pni")
    assert caught.value.status == 422


def test_feedback_for_what_was_long_ago_is_taken_and_marked(recent: RecentRequests) -> None:
    recent.add("r-3", RecentAnswer("support", 1))
    assert not say(InMemoryFeedbackLog(), recent, request_id="r-1").known
    assert say(InMemoryFeedbackLog(), recent, request_id="r-3").known


def test_ids_that_no_answer_can_have_are_refused(recent: RecentRequests) -> None:
    future = str(uuid.UUID(int=int((time.time() + 3600) * 1000) << 80 | 7 << 76 | 2 << 62))
    for request_id in ("r-2", future):
        with pytest.raises(NotFoundError):
            say(InMemoryFeedbackLog(), recent, request_id=request_id)
    with pytest.raises(HttpError, match="index 2"):
        say(InMemoryFeedbackLog(), recent, index=2)
