"""The budgets of every use case as the gateway applies them: read once, with the file of the tenants' totals."""

from dataclasses import dataclass
from functools import lru_cache

import yaml
from pydantic import ValidationError

from governance.budgets.days import Days
from governance.budgets.limits import Limit, limits_of
from governance.budgets.pricing import Prices
from leitstand.errors import ConfigurationError, LeitstandError, NotFoundError, PermanentBackendError
from leitstand.settings import Settings
from leitstand.specs.budgets import BudgetsSpec, TenantsSpec
from leitstand.usecase import find, load, names

__all__ = ["Plan", "Plans", "read_totals"]


@dataclass(frozen=True, slots=True)
class Plan:
    """What holds for requests of one tenant to one use case.

    Attributes:
        use_case: Its name, for metrics; empty when it is not described here: strangers may ask for any name.
        spec: As it is written.
        limits: That apply, in order; none when nothing is limited.
        prices: Of the use case.
        max_tokens: Tokens of one text that its model reads at most.
    """

    use_case: str
    spec: BudgetsSpec
    limits: tuple[Limit, ...]
    prices: Prices
    max_tokens: int

    @property
    def counts_tokens(self) -> bool:
        """Whether it matters how many tokens a request has."""
        return not self.prices.free or any(limit.unit == "tokens_per_day" for limit in self.limits)


class Plans:
    """Reads every use case once; limits that change take hold when the gateway starts again.

    Raises:
        ConfigurationError: A use case or the file of totals cannot be read: a gateway without its limits is unsafe.
    """

    def __init__(self, settings: Settings) -> None:
        self._root = settings.usecases
        self._totals = read_totals(settings)
        self._specs = {name: self._read(name) for name in names(self._root)}
        zones = {spec.time_zone for spec, _ in self._specs.values()} | {self._totals.time_zone}
        self.days = {zone: Days(zone) for zone in zones}
        self.of = lru_cache(4096)(self._plan)

    @property
    def use_cases(self) -> list[str]:
        """Names of the use cases that were read."""
        return sorted(self._specs)

    def tenants(self) -> list[str]:
        """Tenants that have limits of their own, sorted."""
        named = {tenant for spec, _ in self._specs.values() for tenant in spec.tenants}
        return sorted(named | set(self._totals.tenants))

    def _plan(self, use_case: str, tenant: str) -> Plan | None:
        """What holds; None when nothing is limited and nothing costs.

        Raises:
            PermanentBackendError: The use case came after the start, and its file cannot be read.
        """
        known = use_case
        if use_case not in self._specs:
            try:
                self._specs[use_case] = self._read(use_case)
            except NotFoundError:  # only totals may limit it, and nothing of it is kept
                known = ""
            except LeitstandError as error:
                raise PermanentBackendError(f"The budgets of '{use_case}' cannot be read") from error
        spec, max_tokens = self._specs[use_case] if known else (BudgetsSpec(), 0)
        self.days.setdefault(spec.time_zone, Days(spec.time_zone))
        limits = limits_of(use_case, spec, self._totals, tenant)
        plan = Plan(known, spec, limits, Prices(spec.prices), max_tokens)
        return plan if plan.limits or not plan.prices.free else None

    def _read(self, use_case: str) -> tuple[BudgetsSpec, int]:
        loaded = load(find(use_case, self._root))
        return loaded.budgets, loaded.model.max_tokens


def read_totals(settings: Settings) -> TenantsSpec:
    """The limits of tenants over all use cases.

    Raises:
        ConfigurationError: The file is missing or wrong.
    """
    path = settings.budgets.tenants
    if path is None:
        return TenantsSpec()
    try:
        return TenantsSpec.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")) or {})
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigurationError(
            f"LEITSTAND_BUDGETS__TENANTS: {path} cannot be read: {error}", hint="give a YAML file"
        ) from error
    except ValidationError as error:
        lines = [f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors(include_url=False)]
        raise ConfigurationError(f"{path}: " + "; ".join(lines), hint="correct the keys") from error
