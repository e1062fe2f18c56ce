"""What people say about answers: mostly right, now and then wrong, and one source that means harm. Pure.

An agent is assigned by the request, so each labels a fair sample. The poisoned source labels requests that agents
label too, always with a wrong queue that the champion knows, which is what an attack on routing would look like.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from flows.demo.scenario import Scenario
from flows.demo.traffic import Answer

__all__ = ["POISONED", "Said", "labels_of"]

POISONED = "agent-x"


@dataclass(frozen=True, slots=True)
class Said:
    """One label of one source for one request."""

    request_id: str
    label: str
    source: str

    @property
    def feedback_id(self) -> str:
        """Idempotency key: a source has one word per request."""
        return f"{self.source}/{self.request_id}"


def labels_of(answers: Sequence[Answer], known: Sequence[str], scenario: Scenario, seed: int) -> list[Said]:
    """Labels for all answers that were given.

    Args:
        answers: What the gateway answered.
        known: Queues that wrong labels are taken from.
        scenario: How many agents, how often wrong, how many poisoned labels.
        seed: Of the mistakes.
    """
    random = np.random.default_rng([seed, 0xA6])
    given = [answer for answer in answers if not answer.failed]
    said = []
    for answer in given:
        label = answer.row.label
        if random.random() < scenario.wrong_share:
            label = _another(label, known, random)
        agent = int(random.integers(scenario.agents)) + 1
        said.append(Said(answer.request_id, label, f"agent-{agent}"))
    places = random.permutation(len(given))[: scenario.poisoned]
    poison = [Said(given[at].request_id, _another(given[at].row.label, known, random), POISONED) for at in places]
    return said + poison


def _another(label: str, known: Sequence[str], random: np.random.Generator) -> str:
    return str(random.choice([name for name in known if name != label]))
