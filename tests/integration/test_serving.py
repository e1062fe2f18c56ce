"""The protocol over real sockets: bare HTTP and Triton's own client, on a tiny model, in one process."""

import asyncio
import contextlib
import importlib
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import jsonschema
import numpy as np
import pytest
import uvicorn
import yaml

from flows.served_version import ServedVersion, measure_behaviour
from leitstand.errors import TransientBackendError
from leitstand.usecase import CounterfactualSpec, EvaluationSpec, load
from models.bento_manifest import ServingManifest
from models.golden import Golden
from models.loading import Classifier, open_classifier
from services.batching import Batcher
from services.protocol import FrontDoor, Protocol
from services.scheduling import Limits, Overloaded, TooLate
from tests.classifier_for_tests import TEXTS, tiny_classifier
from tests.servers import free_ports

MANIFEST = ServingManifest(
    use_case="support", version=7, model_tag="support-weights:v7", weights_digest="sha256:" + "0" * 64,
    data_digest="sha256:" + "0" * 64, commit="0" * 40, engine="openvino", precision="fp32", max_batch_size=64,
    max_queue=64, deadline_ms=2000, max_text_bytes=65536,
)  # fmt: skip


class Slow:
    """An engine that takes a set time per batch."""

    name, precision, concurrency = "slow", "fp32", 1

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.computed = 0

    def run(self, ids: Any) -> np.ndarray:
        time.sleep(self.seconds)
        self.computed += len(ids)
        return np.zeros((len(ids), 3), np.float32)


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Classifier:
    return open_classifier(tiny_classifier(tmp_path_factory.mktemp("served")), engine="openvino", threads=1)


@pytest.fixture(scope="module")
def url(classifier: Classifier) -> Iterator[str]:
    protocol = Protocol()

    async def other(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await receive()
            batcher = Batcher(classifier, Limits())
            await batcher.warm_up(TEXTS, rounds=1)
            protocol.open(batcher, MANIFEST)
            await send({"type": "lifespan.startup.complete"})
            await receive()
            protocol.close()
            await send({"type": "lifespan.shutdown.complete"})

    (port,) = free_ports(1)
    server = uvicorn.Server(uvicorn.Config(FrontDoor(other, protocol), port=port, log_level="warning", lifespan="on"))
    thread = threading.Thread(target=server.run)
    thread.start()
    deadline = time.monotonic() + 30
    while not server.started and time.monotonic() < deadline:
        time.sleep(0.01)
    yield f"http://127.0.0.1:{port}"
    server.should_exit = True
    thread.join(20)


def infer(url: str, *texts: str, path: str = "support") -> httpx.Response:
    tensor = {"name": "text", "datatype": "BYTES", "shape": [len(texts)], "data": list(texts)}
    return httpx.post(f"{url}/v2/models/{path}/infer", json={"inputs": [tensor]}, timeout=30)


def test_what_serves_is_asked_and_probed_like_a_model_in_memory(url: str, classifier: Classifier) -> None:
    served = ServedVersion(url, "support")
    names = list(classifier.config.labels)
    assert served.labels == tuple(names)
    many = TEXTS * 40
    mine, said = classifier.predict(many), served.predict(many)
    assert np.allclose(said.probabilities, mine.probabilities, atol=1e-4)
    assert (said.abstain == mine.abstain).all()
    assert served.answers(many) == [names[row.argmax()] for row in np.asarray(mine.probabilities)]
    groups = {"women": ("Ann Hill", "Eva Stone"), "men": ("Bob Hill", "Tom Stone")}
    spec = CounterfactualSpec(templates=("I am {person}. {text}",), groups=groups)
    support = load(Path("usecases/support/usecase.yaml"))
    case = support.model_copy(update={"evaluation": EvaluationSpec(counterfactuals=spec)})
    found = measure_behaviour(served, case, Golden(TEXTS, [names[0]] * len(TEXTS)), texts=10)
    names_found = {(metric.name, metric.slice) for metric in found}
    assert {("counterfactual_bias", None), ("robustness_flip_rate", None), ("accuracy", "pii")} <= names_found
    with pytest.raises(TransientBackendError, match="did not answer"):
        ServedVersion(url, "another").answers(TEXTS)


def test_answers_are_those_of_the_classifier(url: str, classifier: Classifier) -> None:
    document = infer(url, *TEXTS).json()
    expected = classifier.predict(TEXTS)
    outputs = {output["name"]: output for output in document["outputs"]}
    assert outputs["label"]["data"] == expected.labels
    np.testing.assert_allclose(outputs["score"]["data"], expected.scores, atol=1e-5)
    assert outputs["abstain"]["data"] == expected.abstain.tolist()
    assert [o["datatype"] for o in document["outputs"]] == ["BYTES", "FP32", "BOOL"]
    assert all(o["shape"] == [len(TEXTS)] for o in document["outputs"])
    assert document["model_version"] == "7"


@pytest.mark.parametrize(
    ("path", "schema"),
    [
        ("v2", "metadata_server_response"),
        ("v2/models/support", "metadata_model_response"),
        ("v2/models/support/versions/7", "metadata_model_response"),
        ("v2/models/nobody", "metadata_model_error_response"),
    ],
)
def test_metadata_conforms_to_the_specification(url: str, path: str, schema: str) -> None:
    conforms(httpx.get(f"{url}/{path}").json(), schema)


@pytest.mark.parametrize("path", ["support", "support/versions/7"])
def test_inference_conforms_to_the_specification(url: str, path: str) -> None:
    conforms(infer(url, *TEXTS, path=path).json(), "inference_response")
    conforms(infer(url, "").json(), "inference_error_response")


def conforms(document: Any, schema: str) -> None:
    """Checks a body against a schema of the protocol's own OpenAPI document."""
    file = Path(__file__).parents[1] / "fixtures" / "open_inference" / "open_inference_rest.yaml"
    specification = yaml.safe_load(file.read_text())
    jsonschema.validate(document, {"$ref": f"#/components/schemas/{schema}", "components": specification["components"]})
    if "error" in schema:
        assert document["error"], "the specification requires a message"


@pytest.mark.parametrize("binary", [False, True])
def test_probabilities_and_embeddings_come_when_asked_for(url: str, classifier: Classifier, binary: bool) -> None:
    triton = importlib.import_module("tritonclient.http")
    client = triton.InferenceServerClient(url.removeprefix("http://"))
    tensor = triton.InferInput("text", [len(TEXTS)], "BYTES")
    tensor.set_data_from_numpy(np.array(TEXTS, dtype=object), binary_data=binary)
    wanted = [triton.InferRequestedOutput(name, binary_data=binary) for name in ("embedding", "label", "probabilities")]
    result = client.infer("support", [tensor], outputs=wanted)
    _, expected = classifier.backend.run_with_embedding(classifier.encode(TEXTS))
    np.testing.assert_allclose(result.as_numpy("embedding"), expected, atol=1e-4)
    np.testing.assert_allclose(result.as_numpy("probabilities"), classifier.predict(TEXTS).probabilities, atol=1e-5)
    client.close()


def test_metadata_names_the_outputs_that_can_be_asked_for(url: str, classifier: Classifier) -> None:
    outputs = httpx.get(f"{url}/v2/models/support").json()["outputs"]
    assert [output["name"] for output in outputs] == ["label", "score", "abstain", "probabilities", "embedding"]
    assert outputs[3]["shape"] == [-1, len(classifier.config.labels)]


def test_tritons_client_works_unchanged(url: str, classifier: Classifier) -> None:
    triton = importlib.import_module("tritonclient.http")
    client = triton.InferenceServerClient(url.removeprefix("http://"))
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("support")
    assert client.is_model_ready("support", "7")
    assert client.get_model_metadata("support")["versions"] == ["7"]
    assert client.get_server_metadata()["name"] == "leitstand"
    expected = classifier.predict(TEXTS)
    for is_binary in (True, False):
        tensor = triton.InferInput("text", [len(TEXTS)], "BYTES")
        tensor.set_data_from_numpy(np.array(TEXTS, dtype=object), binary_data=is_binary)
        result = client.infer("support", [tensor], model_version="7", request_id="r1")
        assert [label.decode() for label in result.as_numpy("label")] == expected.labels
        np.testing.assert_allclose(result.as_numpy("score"), expected.scores, atol=1e-5)
        assert result.as_numpy("abstain").tolist() == expected.abstain.tolist()
        assert result.get_response()["id"] == "r1"
    client.close()


@pytest.mark.parametrize(
    ("path", "status"),
    [("/v2", 200), ("/v2/health/live", 200), ("/v2/health/ready", 200), ("/v2/models/support", 200),
     ("/v2/models/support/ready", 200), ("/v2/models/support/versions/7", 200),
     ("/v2/models/support/versions/7/ready", 200), ("/v2/models/other", 404), ("/v2/models/support/versions/8", 404),
     ("/v2/nothing", 404), ("/v2/models/support/infer", 405)],
)  # fmt: skip
def test_paths_answer_as_the_protocol_says(url: str, path: str, status: int) -> None:
    response = httpx.get(url + path)
    assert response.status_code == status
    if status >= 400:
        assert response.json()["error"]


@pytest.mark.parametrize("text", ["💥💥💥", "a\u0000b\u001b[31m", "ü" * 5000, "\u202egnirts", "x"])
def test_odd_texts_are_answered(url: str, text: str) -> None:
    response = infer(url, text)
    assert response.status_code == 200
    assert 0 <= response.json()["outputs"][1]["data"][0] <= 1


def test_bad_texts_are_refused_with_the_element_named(url: str) -> None:
    assert "text[1] is empty" in infer(url, "card", "").json()["error"]
    long = infer(url, "x" * 70_000)
    assert (long.status_code, "longer than 65536 bytes" in long.json()["error"]) == (413, True)
    assert infer(url, "card", path="other").status_code == 404


def test_a_body_of_ten_megabytes_is_refused_unread(url: str) -> None:
    response = httpx.post(f"{url}/v2/models/support/infer", content=b"x" * 10_000_000, timeout=30)
    assert response.status_code == 413

    def chunks() -> Iterator[bytes]:
        for _ in range(100):
            yield b"x" * 100_000

    with contextlib.suppress(httpx.WriteError):  # the server may answer and close before all is sent
        assert httpx.post(f"{url}/v2/models/support/infer", content=chunks(), timeout=30).status_code == 413
    assert infer(url, "card").status_code == 200


def test_compressed_bodies_are_refused(url: str) -> None:
    response = httpx.post(f"{url}/v2/models/support/infer", content=b"x", headers={"content-encoding": "gzip"})
    assert response.status_code == 415


def test_not_one_of_many_concurrent_requests_fails(url: str, classifier: Classifier) -> None:
    expected = dict(zip(TEXTS, classifier.predict(TEXTS).labels, strict=True))

    async def run() -> None:
        async with httpx.AsyncClient(timeout=30, limits=httpx.Limits(max_connections=64)) as client:

            async def ask(text: str) -> None:
                tensor = {"name": "text", "datatype": "BYTES", "shape": [1], "data": [text]}
                response = await client.post(f"{url}/v2/models/support/infer", json={"inputs": [tensor]})
                assert response.status_code == 200
                assert response.json()["outputs"][0]["data"] == [expected[text]]

            await asyncio.gather(*(ask(TEXTS[i % len(TEXTS)]) for i in range(400)))

    asyncio.run(run())


async def test_overload_is_refused_fast_and_the_rest_is_answered(classifier: Classifier) -> None:
    slow = Slow(0.02)
    batcher = Batcher(
        Classifier(classifier.config, classifier._tokenizer, slow), Limits(max_batch_texts=4, max_queue=8)
    )
    results = await asyncio.gather(*(batcher.classify([[1, 2, 3]]) for _ in range(60)), return_exceptions=True)
    refused = [result for result in results if isinstance(result, Overloaded)]
    assert len(results) - len(refused) == slow.computed >= 8
    assert len(refused) >= 40
    batcher.close()


async def test_a_cancelled_request_is_not_computed(classifier: Classifier) -> None:
    slow = Slow(0.05)
    batcher = Batcher(Classifier(classifier.config, classifier._tokenizer, slow), Limits())
    first = asyncio.ensure_future(batcher.classify([[1]]))
    await asyncio.sleep(0)
    second = asyncio.ensure_future(batcher.classify([[2]]))
    await asyncio.sleep(0)
    second.cancel()
    await first
    with pytest.raises(asyncio.CancelledError):
        await second
    await batcher.classify([[3]])
    assert slow.computed == 2
    batcher.close()


async def test_what_the_caller_no_longer_waits_for_is_not_computed(classifier: Classifier) -> None:
    slow = Slow(0.05)
    batcher = Batcher(Classifier(classifier.config, classifier._tokenizer, slow), Limits(max_batch_texts=1))
    first = asyncio.ensure_future(batcher.classify([[1]]))
    await asyncio.sleep(0)
    with pytest.raises(TooLate):
        await batcher.classify([[2]], within_s=0.01)
    await first
    await batcher.classify([[3]], within_s=60)
    assert slow.computed == 2
    batcher.close()


@pytest.mark.parametrize(("given", "status"), [("0", 504), ("60000", 200), ("soon", 400), ("9" * 40, 400)])
def test_a_callers_deadline_is_honoured(url: str, given: str, status: int) -> None:
    tensor = {"name": "text", "datatype": "BYTES", "shape": [1], "data": ["a lost card"]}
    answer = httpx.post(
        f"{url}/v2/models/support/infer", json={"inputs": [tensor]}, headers={"x-deadline-ms": given}
    )  # fmt: skip
    assert answer.status_code == status


async def test_a_fault_of_the_engine_reaches_every_waiting_request(classifier: Classifier) -> None:
    class Broken(Slow):
        def run(self, ids: Any) -> np.ndarray:
            raise RuntimeError("boom")

    batcher = Batcher(Classifier(classifier.config, classifier._tokenizer, Broken(0)), Limits())
    results = await asyncio.gather(*(batcher.classify([[1]]) for _ in range(3)), return_exceptions=True)
    assert [str(result) for result in results] == ["boom"] * 3
    batcher.close()


async def test_before_the_model_is_open_nothing_is_ready() -> None:
    sent: list[Any] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"{}"}

    async def send(message: Any) -> None:
        sent.append(message)

    for method, path in (("GET", "/v2/health/ready"), ("GET", "/v2/models/support/ready"), ("GET", "/v2/health/live")):
        await Protocol()({"type": "http", "method": method, "path": path, "headers": []}, receive, send)
    assert [message["status"] for message in sent if "status" in message] == [503, 503, 200]
    assert json.loads(sent[1]["body"]) == {"ready": False}
