"""The rollout controller over in-memory parts and a fixed clock."""

from pathlib import Path

import pytest

from flows.rollout import Controller
from leitstand.errors import ConflictError, NotFoundError, TransientBackendError
from leitstand.types import RouteTable, Target, TenantRoute
from monitors.rollout_rules import Command, Phase, Rollout
from tests.fakes import InMemoryRouteStore
from tests.rollout_for_tests import World, use_case

STEPS = (5, 50, 100)


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path, use_case(shadow_minutes=0, canary_percent=STEPS))


def begin(world: World, version: int = 2) -> Rollout:
    return world.controller().begin(world.spec, tag=f"support:{version}", version=version, actor="ann")


def tick(world: World, rollout: Rollout, times: int = 1) -> Rollout:
    """Ticks with a new controller each time: nothing may depend on what one remembers."""
    for _ in range(times):
        rollout = world.controller().tick(rollout)
    return rollout


def canary(world: World) -> Rollout:
    """A rollout whose first step is in force and has been looked at once."""
    rollout = tick(world, begin(world), 2)
    assert (rollout.phase, rollout.step, world.table.canary_percent) == (Phase.CANARY, 0, 5)
    return rollout


def good_traffic(world: World) -> None:
    world.counts.answer(1, 4000)
    world.counts.answer(2, 4000)


def ask(world: World, rollout: Rollout, command: Command) -> None:
    store = world.controller().store
    store.ask(rollout.rollout_id, command, actor="ann", reason="a test", at=world.clock())


def test_a_healthy_canary_climbs_the_steps_and_becomes_the_only_version(world: World) -> None:
    rollout, seen = canary(world), []
    while not rollout.finished:
        good_traffic(world)
        rollout = tick(world, rollout)
        seen.append((rollout.phase, world.table.canary_percent))
        world.clock.advance(seconds=1)
    assert (Phase.CANARY, 5) in seen
    assert (Phase.PROMOTING, 50) in seen
    assert rollout.phase is Phase.PROMOTED
    assert (world.table.stable.version, world.table.canary) == (2, None)
    assert world.champion.moves == [2]
    assert world.versions() == {2}
    percents = [table.canary_percent for table in world.routes.history("support")]
    assert percents == [0, 5, 50, 0, 0], "the last two move all traffic, then the version to the main address"


def test_a_failing_canary_is_taken_away_with_its_numbers_as_the_reason(world: World) -> None:
    rollout = canary(world)
    world.counts.answer(1, 300)
    world.counts.answer(2, 15, failed=15)
    rollout = tick(world, rollout)
    assert rollout.phase is Phase.ROLLING_BACK
    assert "errors: canary 100.00% of 15" in rollout.reason
    rollout = tick(world, rollout)
    assert rollout.phase is Phase.ROLLED_BACK
    assert (world.table.stable.version, world.table.canary, world.table.canary_percent) == (1, None, 0)
    assert world.versions() == {1}
    assert world.champion.moves == []


@pytest.mark.parametrize("good", [True, False])
def test_fallbacks_and_pinned_tenants_outlive_a_rollout_and_their_instances_with_them(world: World, good: bool) -> None:
    small = world.deployer.deploy(use_case(), tag="support:9", version=9)
    fallback, pinned = Target(version=9, url=small.url), TenantRoute(target=world.table.stable)
    changes = {"fallback": fallback, "tenants": {"acme": pinned}, "actor": "ann", "reason": "protect"}
    world.routes.write(world.table.model_copy(update=changes), expected=world.table.revision)
    rollout = canary(world)
    world.counts.answer(1, 300)
    if not good:
        world.counts.answer(2, 15, failed=15)
        rollout = tick(world, rollout, 2)
    while not rollout.finished:
        good_traffic(world)
        rollout = tick(world, rollout)
    assert rollout.phase is Phase.PROMOTED if good else Phase.ROLLED_BACK
    assert all((t.fallback, t.tenants) == (fallback, {"acme": pinned}) for t in world.routes.history("support")[1:])
    assert world.versions() == ({1, 2, 9} if good else {1, 9})


def test_slow_answers_and_unsure_answers_are_harm_too(tmp_path: Path) -> None:
    for number, faults in enumerate(({"slow": 60}, {"confidence": 0.5})):
        (tmp_path / str(number)).mkdir()
        world = World(tmp_path / str(number), use_case(shadow_minutes=0, canary_percent=STEPS, slow_ms=100))
        rollout = canary(world)
        world.counts.answer(1, 1000)
        world.counts.answer(2, 100, **faults)
        assert tick(world, rollout).phase is Phase.ROLLING_BACK


def test_too_little_traffic_holds_the_weight_at_the_deadline_and_says_what_is_missing(world: World) -> None:
    rollout = canary(world)
    world.counts.answer(1, 30)
    world.counts.answer(2, 2)
    assert tick(world, rollout) == rollout
    world.clock.advance(minutes=31)
    rollout = tick(world, rollout)
    assert rollout.phase is Phase.HELD
    assert "2 canary requests of the 50 that a step needs" in rollout.reason
    world.clock.advance(days=2)
    assert tick(world, rollout) == rollout
    assert world.table.canary_percent == 5


def test_the_shadow_is_compared_before_traffic_moves(tmp_path: Path) -> None:
    world = World(tmp_path, use_case(shadow_minutes=10, canary_percent=STEPS))
    rollout = tick(world, begin(world), 2)
    assert (rollout.phase, world.table.canary) == (Phase.SHADOW, None)
    assert world.table.shadow is not None
    world.counts.shadow(2, agree=90, disagree=10)
    assert tick(world, rollout).phase is Phase.SHADOW, "the time is not up"
    world.clock.advance(minutes=11)
    assert tick(world, rollout).phase is Phase.CANARY


def test_a_shadow_that_contradicts_stable_or_fails_never_gets_traffic(tmp_path: Path) -> None:
    for number, answers in enumerate(({"agree": 10, "disagree": 60}, {"failed": 30, "agree": 5})):
        (tmp_path / str(number)).mkdir()
        world = World(tmp_path / str(number), use_case(shadow_minutes=10, canary_percent=STEPS))
        rollout = tick(world, begin(world), 2)
        world.counts.answer(1, 70)
        world.counts.shadow(2, **answers)
        rollout = tick(world, tick(world, rollout))
        assert rollout.phase is Phase.ROLLED_BACK
        assert all(table.canary is None for table in world.routes.history("support"))


def test_manual_approval_waits_for_a_person(tmp_path: Path) -> None:
    world = World(tmp_path, use_case(shadow_minutes=0, canary_percent=STEPS, approval="manual"))
    rollout = tick(world, begin(world), 3)
    assert (rollout.phase, world.table.canary) == (Phase.AWAITING_APPROVAL, None)
    ask(world, rollout, Command.APPROVE)
    rollout = tick(world, rollout)
    assert (rollout.phase, rollout.approved_by) == (Phase.CANARY, "ann")


def test_hold_freezes_the_weight_whatever_the_evidence_and_approve_continues(world: World) -> None:
    rollout = canary(world)
    ask(world, rollout, Command.HOLD)
    good_traffic(world)
    rollout = tick(world, rollout, 3)
    assert (rollout.phase, rollout.by, world.table.canary_percent) == (Phase.HELD, "ann", 5)
    world.clock.advance(minutes=5)
    ask(world, rollout, Command.APPROVE)
    rollout = tick(world, rollout)
    assert (rollout.phase, rollout.step) == (Phase.CANARY, 0)


def test_abort_takes_the_canary_away_in_the_same_tick(world: World) -> None:
    rollout = canary(world)
    ask(world, rollout, Command.ABORT)
    rollout = tick(world, rollout)
    assert (rollout.phase, world.table.canary, world.versions()) == (Phase.ABORTED, None, {1})
    ask(world, rollout, Command.APPROVE)
    assert tick(world, rollout).phase is Phase.ABORTED


def test_a_second_rollout_is_refused_by_the_name_of_the_first(world: World) -> None:
    first = begin(world)
    with pytest.raises(ConflictError, match=first.rollout_id):
        begin(world, version=3)


def test_a_rollout_needs_something_to_compare_with(world: World) -> None:
    world.routes.tables.clear()
    with pytest.raises(NotFoundError, match="Nothing serves"):
        begin(world)


def test_two_controllers_cannot_both_decide(world: World) -> None:
    rollout = canary(world)
    good_traffic(world)
    tick(world, rollout)
    with pytest.raises(ConflictError):
        tick(world, rollout)


def test_a_candidate_that_does_not_start_is_rolled_back_with_the_cause(world: World) -> None:
    world.deployer.dead.add("support:2")
    rollout = tick(world, begin(world), 2)
    assert rollout.phase is Phase.ROLLED_BACK
    assert "did not become ready" in rollout.reason
    assert world.table.revision == 1


def test_a_person_who_changes_the_routes_meanwhile_is_not_overruled(world: World) -> None:
    control = world.controller()
    rollout = control.tick(control.tick(begin(world)))
    update = {"canary": None, "canary_percent": 0.0, "actor": "bob", "reason": "emergency"}
    world.routes.write(world.table.model_copy(update=update), expected=world.table.revision)
    rollout = control.tick(rollout)
    assert rollout.phase is Phase.HELD
    assert "bob changed the routes" in rollout.reason
    assert world.table.canary is None


def test_evidence_that_cannot_be_read_decides_nothing(world: World) -> None:
    rollout = canary(world)

    def down(_: str) -> None:
        raise TransientBackendError("the gateway is away")

    world.counts.read = down  # type: ignore[method-assign,assignment]
    assert tick(world, rollout) == rollout
    world.clock.advance(hours=1)
    rollout = tick(world, rollout)
    assert (rollout.phase, "the gateway is away" in rollout.reason) == (Phase.HELD, True)


class Crash(BaseException):
    """Stands for kill -9: nothing catches it."""


def crashing(control: Controller, after: int) -> None:
    """Makes the controller die after so many writes to any of its stores."""
    left = after

    def wrap(owner: object, name: str) -> None:
        real = getattr(owner, name)

        def call(*arguments: object, **named: object) -> object:
            nonlocal left
            if left == 0:
                raise Crash
            left -= 1
            return real(*arguments, **named)

        setattr(owner, name, call)

    wrap(control.store, "save")
    for owner, names in (
        (control.routes, ["write"]), (control.deployer, ["deploy", "undeploy", "bring_home"]),
        (control.champion, ["give", "take_back"]),
    ):  # fmt: skip
        for name in names:
            wrap(owner, name)


def unwrap(control: Controller) -> None:
    for owner in (control.store, control.routes, control.deployer, control.champion):
        for name in ("save", "write", "deploy", "undeploy", "bring_home", "give", "take_back"):
            owner.__dict__.pop(name, None)


@pytest.mark.parametrize("broken", [False, True])
def test_killed_after_any_single_write_it_ends_as_it_would_have(tmp_path: Path, broken: bool) -> None:
    """Every prefix of the writes of a whole rollout, then a new controller: never half-switched, same end."""
    for writes in range(25):
        (tmp_path / str(writes)).mkdir()
        world = World(tmp_path / str(writes), use_case(shadow_minutes=0, canary_percent=STEPS))
        rollout, control, crashed = begin(world), world.controller(), False
        crashing(control, writes)
        for _ in range(20):
            world.counts.answer(1, 4000)
            world.counts.answer(2, 4000, failed=2000 if broken else 0)
            try:
                rollout = control.tick(control.store.get(rollout.rollout_id))
            except Crash:
                unwrap(control)
                control, crashed = world.controller(), True
            assert_whole(world.routes, world)
            if rollout.finished:
                break
        assert rollout.phase is (Phase.ROLLED_BACK if broken else Phase.PROMOTED), writes
        assert (world.table.stable.version, world.versions()) == ((1, {1}) if broken else (2, {2}))
        assert world.champion.moves == ([] if broken else [2])
        if not crashed:
            assert writes >= 8, "the loop went through every write"
            break
    else:
        pytest.fail("a rollout needs more writes than were tried")


def assert_whole(routes: InMemoryRouteStore, world: World) -> None:
    """Whatever the table sends traffic to runs."""
    table: RouteTable | None = routes.read("support")
    assert table is not None
    for target in (table.stable, table.canary, table.shadow):
        assert target is None or target.url in world.deployer.running
