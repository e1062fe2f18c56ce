"""The demo's trigger through Prefect: the check's event starts the automation, a worker runs the retraining.

`leitstand up` starts server, worker and automations as in any installation. Two things differ: deployments have no
schedules, because an hourly check in the middle of the demo would judge its windows too; and nobody but the demo
drives rollouts.
"""

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

import flows
from flows.demo.place import Place
from flows.loop_events import emit
from flows.monitoring import DriftCheck
from leitstand.errors import PermanentBackendError, TransientBackendError
from leitstand.files import write_text
from leitstand.settings import child_environment
from monitors.retrainings import Retraining, RetrainingLog

__all__ = ["deployments", "retrain_by_event", "start_prefect"]

NEEDED = ("flows.retraining_flow.retrain", "flows.lifecycle.deploy", "flows.monitoring_flows.drift_check")
UP_SECONDS = 240
START_SECONDS = 120.0
POLL_S = 1.0


def start_prefect(place: Place) -> str:
    """Runs `leitstand up` in the demo's home; returns the address of Prefect's user interface.

    Raises:
        PermanentBackendError: It failed.
    """
    write_text(place.work / "prefect.yaml", yaml.safe_dump(deployments(), sort_keys=False))
    command = [sys.executable, "-m", "leitstand.cli", "up"]
    done = subprocess.run(
        command, cwd=place.work, env=child_environment(), capture_output=True, text=True, check=False,
        timeout=UP_SECONDS,
    )  # fmt: skip
    if done.returncode != 0:
        raise PermanentBackendError(f"`leitstand up` failed: {(done.stdout + done.stderr).strip()[-2000:]}")
    place.supervisor.remove("rollouts")
    return f"http://127.0.0.1:{place.settings.local.prefect_port}"


def deployments() -> dict[str, Any]:
    """The project's ``prefect.yaml`` with what the loop needs, without schedules."""
    document = yaml.safe_load((Path(flows.__file__).parents[1] / "prefect.yaml").read_text(encoding="utf-8"))
    kept = [each for each in document["deployments"] if each["entrypoint"] in NEEDED]
    return document | {"deployments": [{key: each[key] for key in each if key != "schedules"} for each in kept]}


def retrain_by_event(check: DriftCheck, log: RetrainingLog, say: Callable[[str], None]) -> Retraining:
    """Emits the check's events and waits until the retraining that they start has ended.

    Raises:
        TransientBackendError: No retraining began within two minutes.
    """
    emit(check.events)
    say(f"event leitstand.drift.detected is sent ({check.decision.action}); the automation and a worker do the rest")
    deadline, trigger = time.monotonic() + START_SECONDS, check.decision.report_digest
    while True:
        found = next((each for each in log.recent(check.decision.use_case) if each.trigger == trigger), None)
        if found is not None and found.finished_at is not None:
            return found
        if found is None and time.monotonic() > deadline:
            raise TransientBackendError(
                "Prefect started no retraining within two minutes", hint="see the logs of prefect-server and worker"
            )
        time.sleep(POLL_S)
