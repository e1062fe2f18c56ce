"""The one list of metric names and labels that a Bento exposes on ``/metrics``."""

from prometheus_client import Counter, Gauge, Histogram

__all__ = ["BATCH_TEXTS", "BATCH_TOKENS", "LATENCY", "QUEUE", "REQUESTS", "SHED"]

REQUESTS = Counter("inference_requests_total", "Inference requests by HTTP status", ["status"])
LATENCY = Histogram(
    "inference_latency_seconds",
    "Time from the first byte of a request to its answer, answered requests only",
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5),
)
QUEUE = Gauge("inference_queue_texts", "Texts that wait for a worker", multiprocess_mode="livesum")
BATCH_TEXTS = Histogram("inference_batch_texts", "Texts per batch", buckets=(1, 2, 4, 8, 16, 32, 64, 128))
BATCH_TOKENS = Counter("inference_tokens_total", "Tokens computed, without padding")
SHED = Counter("inference_shed_total", "Requests refused", ["reason"])
