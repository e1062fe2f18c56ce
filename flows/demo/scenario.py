"""Which rows play which part in the demo. Pure: rows and a seed in, four disjoint parts out.

All rows of the use case are drawn anew, queue by queue, so that traffic without withheld queues differs from the
measured rows by chance only:

    measured   never trained on by anybody: gates, reference of the detectors, accuracy before and after
    base       what the first champion learns; no row of a withheld queue
    calm       traffic before the drift; no row of a withheld queue
    drifting   traffic in which the withheld queues have appeared
    fresh      measured rows with withheld queues among them: traffic while the retrained version is rolled out

Base, calm and drifting rows together are *everything*: what the yardstick model is trained on.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from leitstand.errors import ConfigurationError

__all__ = ["FAST", "FULL", "Drawn", "Row", "Scenario", "draw"]


@dataclass(frozen=True, slots=True)
class Row:
    """A text and its true queue."""

    text: str
    label: str


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """Sizes of a demo.

    Attributes:
        name: For the record.
        queues: How many of the use case's queues take part.
        withheld: How many of them the first champion does not know.
        measured_share: Of all rows, those that are only measured on.
        base_share: Of the known queues' other rows, those that the first champion learns.
        window: Requests in a window that is checked for drift.
        calm_windows: Checked windows before the drift.
        drift_windows: Windows in which the drift must be seen, at most.
        drift_share: Share of withheld queues in the traffic once they appear.
        fresh_share: Their share while the retrained version is rolled out; the shadow must agree half of the time.
        shadow_minutes: Of the retrained version's rollout.
        rows_per_queue: Rows of a queue at most; 0: all.
        agents: People who label.
        wrong_share: Share of an honest agent's labels that are wrong.
        poisoned: Labels that a source with bad intent sends.
        rate: Requests per second while a rollout is judged.
        min_accuracy: The gates' floor.
        tolerance: How much worse than the yardstick the retrained model may be, as a share of answers; it fails the
            demo when it is worse beyond chance.
    """

    name: str
    queues: int
    withheld: int
    measured_share: float = 0.235
    base_share: float = 0.5
    window: int
    calm_windows: int
    drift_windows: int = 4
    drift_share: float = 0.5
    fresh_share: float = 0.35
    shadow_minutes: int = 1
    rows_per_queue: int = 0
    agents: int = 6
    wrong_share: float = 0.02
    poisoned: int = 60
    rate: float = 60.0
    min_accuracy: float
    tolerance: float


FULL = Scenario(
    name="full", queues=77, withheld=12, rows_per_queue=130, measured_share=0.2, base_share=0.6, window=250,
    calm_windows=4, min_accuracy=0.87, tolerance=0.01,
)  # fmt: skip
FAST = Scenario(
    name="fast", queues=14, withheld=4, rows_per_queue=130, measured_share=0.3, base_share=0.3, window=120,
    calm_windows=1, drift_windows=3, shadow_minutes=0, agents=4, poisoned=30, min_accuracy=0.8, tolerance=0.05,
)  # fmt: skip


@dataclass(frozen=True)
class Drawn:
    """The parts; `known` and `withheld` are sorted queue names."""

    known: tuple[str, ...]
    withheld: tuple[str, ...]
    measured: tuple[Row, ...]
    base: tuple[Row, ...]
    calm: tuple[Row, ...]
    drifting: tuple[Row, ...]
    spare: tuple[Row, ...]
    fresh: tuple[Row, ...]

    @property
    def labels(self) -> tuple[str, ...]:
        """All queues that take part, sorted."""
        return tuple(sorted((*self.known, *self.withheld)))

    @property
    def everything(self) -> tuple[Row, ...]:
        """What a model knows that saw it all: base, traffic, and the rows that no traffic needed."""
        return (*self.base, *self.calm, *self.drifting, *self.spare)


def draw(rows: Iterable[Row], scenario: Scenario, seed: int) -> Drawn:
    """Splits the rows; the same rows and seed give the same parts.

    Raises:
        ConfigurationError: There are fewer queues or rows than the scenario needs.
    """
    random = np.random.default_rng(seed)
    queues = _queues(rows)
    if len(queues) < scenario.queues or scenario.withheld >= scenario.queues:
        raise ConfigurationError(f"The demo needs {scenario.queues} queues; the data has {len(queues)}")
    chosen = sorted(random.choice(sorted(queues), scenario.queues, replace=False).tolist())
    withheld = set(random.choice(chosen, scenario.withheld, replace=False).tolist())
    measured: list[Row] = []
    base: list[Row] = []
    known: list[Row] = []
    new: list[Row] = []
    for name in chosen:
        mine = [queues[name][place] for place in random.permutation(len(queues[name]))]
        mine = mine[: scenario.rows_per_queue or None]
        kept = round(len(mine) * scenario.measured_share)
        measured += mine[:kept]
        if name in withheld:
            new += mine[kept:]
        else:
            cut = kept + round((len(mine) - kept) * scenario.base_share)
            base += mine[kept:cut]
            known += mine[cut:]
    known = [known[place] for place in random.permutation(len(known))]
    new = [new[place] for place in random.permutation(len(new))]
    measured = [measured[place] for place in random.permutation(len(measured))]
    first = scenario.window * scenario.calm_windows
    count, beside = _fitting(len(new), len(known) - first, scenario.drift_share)
    if count + beside < scenario.window * scenario.drift_windows:
        raise ConfigurationError(
            f"The demo needs {first} rows of calm traffic and {scenario.window * scenario.drift_windows} of drifting "
            f"traffic; there are {len(known)} rows of known queues and {len(new)} of withheld ones for it"
        )
    later = [row for row in measured if row.label in withheld]
    usual = [row for row in measured if row.label not in withheld]
    fresh = _fitting(len(later), len(usual), scenario.fresh_share)
    return Drawn(
        known=tuple(name for name in chosen if name not in withheld), withheld=tuple(sorted(withheld)),
        measured=tuple(measured), base=tuple(base), calm=tuple(known[:first]),
        drifting=_mixed(known[first : first + beside], new[:count]), spare=(*known[first + beside :], *new[count:]),
        fresh=_mixed(usual[: fresh[1]], later[: fresh[0]]),
    )  # fmt: skip


def _queues(rows: Iterable[Row]) -> dict[str, list[Row]]:
    """Rows by queue; a text counts once."""
    seen: set[str] = set()
    queues: dict[str, list[Row]] = {}
    for row in rows:
        key = " ".join(row.text.split()).casefold()
        if key not in seen:
            seen.add(key)
            queues.setdefault(row.label, []).append(row)
    return queues


def _fitting(new: int, known: int, share: float) -> tuple[int, int]:
    """The most rows of new and of known queues that stand in the wanted proportion."""
    count = min(new, int(max(known, 0) * share / (1 - share)))
    return count, round(count * (1 - share) / share)


def _mixed(known: Sequence[Row], new: Sequence[Row]) -> tuple[Row, ...]:
    """Both in their order, evenly interleaved, so that every window has the same share of new queues."""
    places = [((number + 0.5) / len(part), row) for part in (known, new) for number, row in enumerate(part)]
    return tuple(row for _, row in sorted(places, key=lambda pair: pair[0]))
