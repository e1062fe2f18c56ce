"""FastAPI as most tutorials show it: one synchronous endpoint, one text per call, no batching."""

from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel

from benchmarks.peers.shared import answers, opened

classifier = opened()
app = FastAPI()


class Query(BaseModel):
    text: str


@app.post("/predict")
def predict(query: Query) -> dict[str, Any]:
    return answers(classifier, [query.text])[0]


@app.get("/readyz")
def ready() -> str:
    return "ok"
