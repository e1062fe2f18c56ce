"""A Bento that logs by itself writes the rows that a gateway would, and says what it needs for it."""

import asyncio
import sys
import time
from datetime import timedelta
from pathlib import Path

import numpy as np
import orjson
import pytest

from governance.log_location import open_log_location
from leitstand.errors import MissingExtraError
from leitstand.settings import ServingSettings, Settings
from leitstand.types import utc_now
from models.bento_manifest import ServingManifest
from models.loading import Classifier, open_classifier
from monitors.windows import read_window
from services.batching import Batcher
from services.bento_log import open_bento_log
from services.protocol import Protocol
from services.scheduling import Limits
from tests.classifier_for_tests import TEXTS, tiny_classifier

MANIFEST = ServingManifest(
    use_case="support", version=7, model_tag="m:1", weights_digest="w", data_digest="d", commit="c", engine="openvino",
    precision="fp32", max_batch_size=8, max_queue=64, deadline_ms=2000, max_text_bytes=65536,
)  # fmt: skip


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Classifier:
    return open_classifier(tiny_classifier(tmp_path_factory.mktemp("logged")), engine="openvino", threads=1)


def switched_on(home: Path) -> Settings:
    return Settings(home=home, serving=ServingSettings(inference_log=True))


async def test_each_text_leaves_a_row_under_the_request_id_of_the_answer(
    classifier: Classifier, tmp_path: Path
) -> None:
    log = open_bento_log(switched_on(tmp_path), MANIFEST)
    assert log is not None
    protocol = Protocol()
    protocol.open(Batcher(classifier, Limits()), MANIFEST, log)
    tensor = {"name": "text", "datatype": "BYTES", "shape": [2], "data": TEXTS[:2]}
    sent: list[dict] = []

    async def receive() -> dict:
        return {"type": "http.request", "body": orjson.dumps({"inputs": [tensor]})}

    async def send(message: dict) -> None:
        sent.append(message)

    for given in ([(b"x-request-id", b"from-the-caller")], [(b"x-request-id", b"bad\xff")]):
        scope = {"type": "http", "method": "POST", "path": "/v2/models/support/infer", "headers": given}
        await protocol(scope, receive, send)
    ids = [dict(message["headers"])[b"x-request-id"].decode() for message in sent if "headers" in message]
    await asyncio.to_thread(protocol.close)
    await asyncio.to_thread(log.close)
    now = utc_now()
    hour = timedelta(hours=1)
    found = read_window(open_log_location(switched_on(tmp_path)), "support", now - hour, now + hour).to_pylist()
    assert ids[0] == "from-the-caller"
    assert [(record["request_id"], record["index"]) for record in found] == [(i, n) for i in ids for n in (0, 1)]
    expected = classifier.predict(TEXTS[:2])
    assert [record["label"] for record in found[:2]] == expected.labels
    assert found[0]["characters"] == len(TEXTS[0])
    assert (found[0]["version"], found[0]["route"]) == (7, "stable")
    _, vectors = classifier.backend.run_with_embedding(classifier.encode(TEXTS[:1]))
    np.testing.assert_allclose(np.frombuffer(found[0]["embedding"], "<f2"), vectors[0], atol=5e-3)
    assert len(np.frombuffer(found[0]["probabilities"], "<f2")) == len(classifier.config.labels)
    assert 0 < found[0]["latency_ms"] < 60_000
    assert time.time() - found[0]["at"].timestamp() < 3600


def test_it_is_off_by_default_and_names_what_is_missing_when_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert open_bento_log(Settings(home=tmp_path), MANIFEST) is None
    monkeypatch.delitem(sys.modules, "governance.inference_log", raising=False)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingExtraError, match="pyarrow") as raised:
        open_bento_log(switched_on(tmp_path), MANIFEST)
    assert "pip install" in str(raised.value)
