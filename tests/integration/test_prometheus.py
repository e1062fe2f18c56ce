"""A real Prometheus reads a real gateway: rules and dashboard ask only for what there is, and the tools accept them."""

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from prometheus_client.metrics import MetricWrapperBase

from services import metrics as bento_metrics
from tests.gateway_processes import Gateway, Upstream, gateway_running, until
from tests.servers import free_ports, running, system_tool, wait_until

FOLDER = Path(__file__).parents[2] / "deploy"
WORD = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]*")
RULES: dict[str, Any] = yaml.safe_load((FOLDER / "prometheus" / "rules.yml").read_text())
EVERY = [rule for group in RULES["groups"] for rule in group["rules"]]
DASHBOARD: dict[str, Any] = json.loads((FOLDER / "grafana" / "gateway.json").read_text())
QUERIES = [target["expr"] for panel in DASHBOARD["panels"] for target in panel.get("targets", [])]
ALERTS = [rule for rule in EVERY if "alert" in rule]


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    folder = tmp_path_factory.mktemp("scraped")
    upstream = Upstream(1, free_ports(1)[0], folder)
    with upstream.stack, gateway_running(folder / "home") as made:
        upstream.start()
        made.route(upstream)
        yield made


@pytest.fixture(scope="module")
def prometheus(gateway: Gateway, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """With the project's own files; only addresses and the interval are the test's."""
    folder, (port,) = tmp_path_factory.mktemp("prometheus"), free_ports(1)
    config = yaml.safe_load((FOLDER / "prometheus" / "prometheus.yml").read_text())
    config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    config["scrape_configs"][0]["static_configs"][0]["targets"] = [gateway.url.removeprefix("http://")]
    del config["alerting"], config["scrape_configs"][1]
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    (folder / "rules.yml").write_text((FOLDER / "prometheus" / "rules.yml").read_text())
    command = [
        system_tool("prometheus"), f"--config.file={folder / 'prometheus.yml'}",
        f"--web.listen-address=127.0.0.1:{port}", f"--storage.tsdb.path={folder / 'data'}",
    ]  # fmt: skip
    url = f"http://127.0.0.1:{port}"
    with running(command, folder / "log") as process:
        wait_until(lambda: is_ready(url), process, folder / "log", "Prometheus")
        yield url


def is_ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/-/ready").status_code == 200
    except httpx.HTTPError:
        return False


def ask(url: str, query: str) -> list[dict[str, Any]]:
    answer = httpx.get(f"{url}/api/v1/query", params={"query": query}).json()
    assert answer["status"] == "success", (query, answer)
    return answer["data"]["result"]


def filled_in(query: str) -> str:
    return query.replace("$__rate_interval", "5s").replace("$use_case", ".*")


def names_in(query: str) -> set[str]:
    """Names of metrics: what is no word of PromQL, no label and no value."""
    bare = re.sub(r'"[^"]*"|\{[^}]*\}|\[[^\]]*\]|\b(by|on|without|ignoring)\s*\([^)]*\)', " ", query)
    words = {word for word in WORD.findall(bare) if "_" in word or ":" in word or word == "up"}
    return words - {"histogram_quantile", "max_over_time", "min_over_time"}


def test_promtool_accepts_configuration_and_rules_and_the_rules_fire_as_they_should() -> None:
    for command in (["check", "config", "prometheus.yml"], ["test", "rules", "rules.test.yml"]):
        done = subprocess.run(
            [system_tool("promtool"), *command], cwd=FOLDER / "prometheus", capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_is_tested_and_leads_to_a_runbook(project: Path) -> None:
    tested = (FOLDER / "prometheus" / "rules.test.yml").read_text()
    for alert in ALERTS:
        assert f'alertname="{alert["alert"]}"' in tested, alert["alert"]
        assert (project / alert["annotations"]["runbook_url"]).is_file()
        assert alert["labels"]["severity"] in ("critical", "warning") and alert["annotations"]["summary"]


def test_rules_and_dashboard_ask_only_for_metrics_that_there_are(prometheus: str, gateway: Gateway) -> None:
    assert gateway.predict("a card").status_code == 200
    until(lambda: bool(ask(prometheus, "gateway_http_requests_total")), "the first scrape")
    known = set(httpx.get(f"{prometheus}/api/v1/metadata", params={"limit": 10_000}).json()["data"])
    known |= {name for metric in vars(bento_metrics).values() if isinstance(metric, MetricWrapperBase)
        for name in (metric.describe()[0].name, f"{metric.describe()[0].name}_total")}  # fmt: skip
    known |= {rule["record"] for rule in EVERY if "record" in rule} | {"up"}
    known |= {f"{name}_{part}" for name in known for part in ("bucket", "sum", "count")}
    for query in [*QUERIES, *(rule["expr"] for rule in EVERY)]:
        ask(prometheus, filled_in(query))
        missing = names_in(filled_in(query)) - known
        assert not missing, (query, missing)


def test_answers_become_what_the_rules_and_panels_show(prometheus: str, gateway: Gateway) -> None:
    def answered() -> bool:
        for _ in range(5):
            gateway.predict("a card")
        rate = ask(prometheus, 'use_case:gateway_http_requests:rate5m{use_case="support"}')
        return bool(rate) and float(rate[0]["value"][1]) > 0

    until(answered, "the recorded rate")
    titles = {panel["title"]: panel for panel in DASHBOARD["panels"]}
    for title in ("Requests per second", "Latency", "Overhead of the gateway", "Answers by version and route"):
        for target in titles[title]["targets"]:
            assert ask(prometheus, filled_in(target["expr"]).replace("[5s]", "[1m]")), (title, target["expr"])


def test_names_keep_to_one_pattern(prometheus: str) -> None:
    metadata = httpx.get(f"{prometheus}/api/v1/metadata", params={"limit": 10_000}).json()["data"]
    for name, (about, *_) in metadata.items():
        if name.startswith(("gateway_", "jobs_", "job_")):
            assert about["help"], name
            assert (about["type"] == "counter") == name.endswith("_total"), name
            assert not re.search(r"_(ms|millis|micros|minutes|kb|mb)(_|$)", name), name
