"""What a record says about a request, by how it ended; and how two answers are compared."""

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path

import orjson
import pytest

from governance.audit.keys import open_keys
from governance.audit.opening import open_trail
from governance.audit.reading import Reader
from governance.audit.trail import AuditUnavailable
from leitstand.errors import AuthenticationFailed, ContentBlocked, LeitstandError, NotFoundError, QuotaExceeded
from leitstand.settings import AuditSettings, Settings
from leitstand.specs.audit import AuditSpec
from leitstand.types import Caller, Usage, Verdict
from services.auditing import Auditor, audit_specs, entry_of
from services.exchange import Exchange, RawPayload, TextPayload
from services.policies import Policies
from services.replaying import compare
from services.upstreams import UpstreamFailed
from tests.gateway_for_tests import STABLE, answer, bench


def exchange(error: BaseException | None = None, **more: object) -> Exchange:
    made = Exchange(
        use_case="support", request_id="r-1", subject="ann", payload=TextPayload(["a card"]), path="/p", deadline=0.0,
        caller=Caller("svc", "bank", frozenset(), "jwt", "k-1"), usage=Usage(3, 0, 7), error=error,
        **more,  # type: ignore[arg-type]
    )  # fmt: skip
    if error is None:
        made.take(answer(1, ["card"]))
    return made


def test_an_answer_is_recorded_with_who_asked_what_and_what_it_used() -> None:
    made = entry_of(exchange(verdicts=[Verdict("input", "pii", "mask", "pii.iban", 1)], policy_digest="sha256:p"))
    facts = made.facts
    assert (facts["tenant"], facts["method"], facts["key_id"], facts["status"]) == ("bank", "jwt", "k-1", 200)
    assert (facts["tokens_in"], facts["cost_micros"], facts["policy"]) == (3, 7, "sha256:p")
    assert facts["started_at"] <= facts["ended_at"] and facts["verdicts"][0].reason == "pii.iban"
    assert (made.scope.tenant, made.scope.subject, made.scope.day) == ("bank", "ann", None)
    assert made.who is not None and made.who.value == {"subject": "ann", "caller": "svc"}
    assert made.input is not None and made.input.value == ["a card"]
    assert made.output is not None and made.output.value["labels"] == ["card"]


@pytest.mark.parametrize(
    ("error", "status", "kept"),
    [
        (AuthenticationFailed("no token"), 401, False),
        (QuotaExceeded("too much", limit="rate", retry_after_s=1), 429, False),
        (NotFoundError("no such use case"), 404, False),
        (ContentBlocked("blocked", reasons=["x"]), 403, True),
        (UpstreamFailed("slow", "timeout"), 504, True),
        (asyncio.CancelledError(), 499, True),
        (ZeroDivisionError("secret of somebody"), 500, True),
    ],
)
def test_how_a_request_ended_decides_what_is_kept(error: BaseException, status: int, kept: bool) -> None:
    made = entry_of(exchange(error))
    assert made.facts["status"] == status and made.facts["problem"]
    assert "secret" not in made.facts["problem"]
    assert (made.input is not None) is kept


def test_who_names_nobody_shares_a_key_for_a_day() -> None:
    made = exchange()
    made.subject, made.caller = "", Caller()
    entry = entry_of(made)
    assert entry.scope.day is not None and entry.who is None


def test_a_stage_may_know_more_and_content_may_be_unwanted() -> None:
    made = exchange(notes={"audit": {"parameters": {"seed": 7}, "sources": ["kb/1"], "output": "said", "bento": "b"}})
    entry = entry_of(made)
    assert (entry.facts["parameters"], entry.facts["sources"], entry.facts["bento"]) == ({"seed": 7}, ["kb/1"], "b")
    assert entry.output is not None and entry.output.value == "said"
    bare = entry_of(made, content=False)
    assert bare.input is None and bare.output is None and bare.who is not None


def test_a_protocol_request_is_kept_as_its_bytes() -> None:
    made = exchange()
    made.payload = RawPayload(b"{}xx", {"content-type": "application/json",
        "inference-header-content-length": "2"}, 2, 100)  # fmt: skip
    entry = entry_of(made)
    assert entry.input is not None and entry.input.form == "application/json; head=2"
    assert entry.input.plain() == b"{}xx"


async def test_nothing_leaves_the_pipeline_without_its_record(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path, audit=AuditSettings(max_waiting=1))
    auditor = Auditor(open_trail(settings), "strict", audit_specs(settings))

    async def refuse(exchange: Exchange) -> None:
        raise ContentBlocked("blocked", reasons=["x"])

    async def settle_fails(exchange: Exchange) -> None:
        raise LeitstandError("the budget's store is gone")

    await auditor.start()
    for policies in (Policies(audit=auditor), Policies(audit=auditor, guard_input=refuse),
                     Policies(audit=auditor, settle=settle_fails)):  # fmt: skip
        async with bench({STABLE: answer(1, ["card"])}, policies=policies) as one:
            if policies.settle is settle_fails or policies.guard_input is refuse:
                with pytest.raises(LeitstandError):
                    await one.ask("a card")
            else:
                await one.ask("a card")
    await auditor.close()
    keys = open_keys(tmp_path / "audit")
    found = [(record.status, record.version) for record in Reader(tmp_path / "audit", keys).records()]
    keys.close()
    assert found == [(200, 1), (403, 0), (500, 1)]
    async with bench({STABLE: answer(1, ["card"])}, policies=Policies(audit=auditor)) as one:
        with pytest.raises(AuditUnavailable):
            await one.ask("a card")
    assert "closed" in auditor.down


def test_an_unknown_use_case_is_recorded_as_the_settings_say(tmp_path: Path) -> None:
    assert audit_specs(Settings(home=tmp_path, usecases=tmp_path))("nobody") == AuditSpec()


def said(labels: Sequence[str], scores: Sequence[float]) -> bytes:
    return orjson.dumps({"labels": labels, "scores": scores, "abstain": [False] * len(labels)})


def body(labels: Sequence[str], score: float = 0.75) -> bytes:
    document = json.loads(answer(1, labels).body)
    document["outputs"][1]["data"] = [score] * len(labels)
    return orjson.dumps(document)


@pytest.mark.parametrize(
    ("before", "now", "outcome"),
    [
        (said(["card"], [0.75]), body(["card"]), "identical"),
        (said(["card"], [0.7504]), body(["card"]), "within tolerance"),
        (said(["card"], [0.76]), body(["card"]), "diverged"),
        (said(["pin"], [0.75]), body(["card"]), "diverged"),
        (said(["card", "pin"], [0.75, 0.75]), body(["card"]), "diverged"),
    ],
)
def test_answers_are_compared_label_by_label_and_score_by_score(before: bytes, now: bytes, outcome: str) -> None:
    assert compare("predictions", before, now, None, 1e-3).outcome == outcome


def test_raw_answers_and_chats_are_compared_by_what_they_say() -> None:
    assert compare("application/json", body(["card"]), body(["card"]), None, 0).outcome == "identical"
    assert compare("application/json", body(["card"]), body(["card"], 0.7500001), None, 1e-3).outcome == (
        "within tolerance"
    )
    texts = ("yes", "yes", "yet")
    chats = [orjson.dumps({"id": n, "choices": [{"message": {"content": text}}]}) for n, text in enumerate(texts)]
    assert compare("application/json", chats[0], chats[1], None, 0).outcome == "identical"
    differs = compare("application/json", chats[0], chats[2], None, 0)
    assert differs.outcome == "diverged" and "character 2" in differs.differences[0]
