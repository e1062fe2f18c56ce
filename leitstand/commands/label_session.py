"""A labelling session without a terminal: what is asked, what an answer means, what is recorded."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

__all__ = ["HELP", "Item", "Session"]

HELP = "number or (part of) a label; +NAME for a new label; s skips, u undoes, q ends"
SHOWN = 8


@dataclass(frozen=True)
class Item:
    """One answer to label; `guesses` are the model's labels with their probabilities, the likeliest first."""

    request_id: str
    index: int
    text: str
    guesses: tuple[tuple[str, float], ...]


class Session:
    """Walks through `items`. `record` takes an item and its label; None withdraws it."""

    def __init__(
        self, items: Sequence[Item], labels: Sequence[str], record: Callable[[Item, str | None], None]
    ) -> None:
        self.items, self.labels = items, list(labels)
        self.place = 0
        self.done: list[tuple[int, bool]] = []  # place and whether it was labelled (or skipped)
        self._record = record

    @property
    def current(self) -> Item | None:
        """The item to ask about; None: there is none left."""
        return self.items[self.place] if self.place < len(self.items) else None

    @property
    def labelled(self) -> int:
        """How many items have a label of this session."""
        return sum(labelled for _, labelled in self.done)

    def answer(self, given: str) -> str:
        """Takes one line and returns what to tell the person; an unclear line changes nothing."""
        item, given = self.current, given.strip()
        if item is None or not given:
            return HELP
        if given == "s":
            return self._next(labelled=False, message="skipped")
        if given == "u":
            return self._undo()
        label, problem = self._label(item, given)
        if label is None:
            return problem
        self._record(item, label)
        return self._next(labelled=True, message=f"→ {label}")

    def _label(self, item: Item, given: str) -> tuple[str | None, str]:
        if given.isdigit():
            place = int(given)
            if 1 <= place <= len(item.guesses):
                return item.guesses[place - 1][0], ""
            return None, f"there is no guess {place}; {HELP}"
        if given.startswith("+"):
            name = given[1:].strip()
            if not name:
                return None, HELP
            self.labels += [name] if name not in self.labels else []
            return name, ""
        if given in self.labels:
            return given, ""
        return self._matching(given)

    def _matching(self, given: str) -> tuple[str | None, str]:
        folded = given.casefold()
        found = [label for label in self.labels if label.casefold().startswith(folded)]
        found = found or [label for label in self.labels if folded in label.casefold()]
        if len(found) == 1:
            return found[0], ""
        if not found:
            return None, f"no label matches '{given}'; {HELP}"
        more = f" and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
        return None, f"'{given}' may be: {', '.join(found[:SHOWN])}{more}"

    def _next(self, *, labelled: bool, message: str) -> str:
        self.done.append((self.place, labelled))
        self.place += 1
        return message

    def _undo(self) -> str:
        if not self.done:
            return "there is nothing to undo"
        self.place, labelled = self.done.pop()
        if labelled:
            self._record(self.items[self.place], None)
        return "undone"
