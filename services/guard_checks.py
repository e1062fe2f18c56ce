"""Runs the model-based checks of a chain beside the event loop, each within its deadline."""

import asyncio
from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor

import structlog

from governance.guards.checks import Check, open_check
from leitstand.specs.guards import CheckRule
from leitstand.types import Verdict

__all__ = ["CheckRunner"]

THREADS = 4

logger = structlog.get_logger()


class CheckRunner:
    """Opens each rule's check once and asks it. A check that hangs costs a thread until it returns, not the request."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="guard-check")
        self._checks: dict[CheckRule, Check] = {}

    def prepare(self, rules: Sequence[CheckRule]) -> None:
        """Loads what the rules need, before the first request."""
        for rule in rules:
            self._checks.setdefault(rule, open_check(rule))

    async def verdicts(
        self, rules: Sequence[CheckRule], texts: Sequence[str], stage: str, prompts: Collection[int] = ()
    ) -> list[Verdict]:
        """What the checks say about the texts; all are asked at once.

        Args:
            rules: The checks.
            texts: All texts of a request, or all answers.
            stage: ``input`` or ``output``.
            prompts: Which of the texts are system prompts; these inject nothing.
        """
        said = await asyncio.gather(*(self._ask(rule, texts) for rule in rules))
        found: list[Verdict] = []
        for rule, scores in zip(rules, said, strict=True):
            if isinstance(scores, str):
                found.append(Verdict(stage, rule.called, rule.on_timeout, f"check.{scores}", 1))  # type: ignore[arg-type]
                continue
            found += [
                Verdict(stage, rule.called, rule.action, f"check.{rule.called}", 1, index)  # type: ignore[arg-type]
                for index, score in enumerate(scores)
                if score >= rule.threshold and not (rule.model == "injection" and index in prompts)
            ]
        return found

    def close(self) -> None:
        """Lets go of the threads; those that hang end with the process."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def _ask(self, rule: CheckRule, texts: Sequence[str]) -> list[float] | str:
        """The scores, or why there are none."""
        self.prepare([rule])
        work = asyncio.get_running_loop().run_in_executor(self._threads, self._checks[rule].judge, texts)
        try:
            return await asyncio.wait_for(work, rule.deadline_ms / 1000)
        except TimeoutError:
            return "timeout"
        except Exception as error:  # the boundary: what a check raises is not the request's fault
            logger.warning("A guard's check failed", check=rule.called, cause=str(error)[:300])
            return "failed"
