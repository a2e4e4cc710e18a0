"""The protocol under crashes at every point: a model of store, learner and engine, driven by the real decisions.

Real here: `next_action`, the task queue, the table of transitions and the learner's ledger. Modelled: that a store write is
one fenced transaction, that a learner and an engine remember the highest fence only while they live, that an operation of
the learner may finish after whoever started it is gone, and that weights are the list of batches that made them. Drivers
(orchestrators) look and act in separate moments, so each may act on what is no longer so; one that lost its lease stays
around and wakes up whenever it likes.
"""

import contextlib
import copy
from collections import Counter
from enum import Enum

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from modelled.parts import Crash, Driver, Parts
from modelled.store import RUN, TASKS, RefusedError, Weights
from troupe_learner.ledger import Ledger, Version
from troupe_orchestrator.store.steps import StepState
from troupe_orchestrator.training.protocol import PolicyView, Refuse, Saved, Work, next_action
from troupe_orchestrator.training.queue import TaskQueue, epoch_order

POLICY = "policy"
DROPPED = st.sets(st.integers(0, 1), max_size=1)
"""Which of a step's tasks are lost to faults: not the last, so that a step has something to train on."""


class Fate(Enum):
    """What becomes of an effect and of who asked for it."""

    DONE = "it happens and is answered"
    LOST_REPLY = "it happens, the answer is lost"
    NEVER_SENT = "the driver dies before"
    DIES_AFTER = "the driver dies after"


class Crashes(RuleBasedStateMachine):
    """Drivers, crashes and lost replies in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.parts = Parts()
        self.drivers = [Driver(1)]
        self.names: dict[Version, Weights] = {}

    @initialize(other_run=st.booleans(), fork=st.booleans())
    def the_learner_may_have_been_another_runs_and_the_run_may_be_a_fork(self, other_run: bool, fork: bool) -> None:
        if fork:
            self.parts.store.saved = [Saved(0, "base")]
            self.parts.store.began_with = ("parents",)
            self.parts.learner.disk["base"] = (Ledger("parent", "parents").with_step(b"parents", {}), ("parents",))
        if other_run:
            self.parts.learner.ledger = Ledger("other", "initial").with_step(b"theirs", {})
            self.parts.learner.weights = ("theirs",)
            self.parts.learner.produced["initial"] = 1

    # --- drivers ----------------------------------------------------------------------------------------------------

    @rule(which=st.integers(0, 2))
    def look(self, which: int) -> None:
        """A driver decides; what it saw may be old when it acts."""
        driver = self.drivers[which % len(self.drivers)]
        store, learner, engine = self.parts.store, self.parts.learner, self.parts.engine
        version = learner.ledger.version
        policy = PolicyView(learner.view, store.sealed, tuple(store.saved), engine.version == version)
        driver.action, policy_id = next_action(RUN, store.state, {POLICY: policy})
        assert policy_id == ("" if isinstance(driver.action, Work) else POLICY)
        assert not isinstance(driver.action, Refuse), driver.action.reason
        driver.steps, driver.version, driver.engine_version = len(store.steps), version, engine.version

    @rule(which=st.integers(0, 2), fate=st.sampled_from(Fate), dropped=DROPPED)
    def act(self, which: int, fate: Fate, dropped: set[int]) -> None:
        driver = self.drivers[which % len(self.drivers)]
        if driver.action is None or fate is Fate.NEVER_SENT:
            driver.action = None
            return
        stale = driver.token < self.parts.store.token
        before = copy.deepcopy((self.parts.store, self.parts.learner.ledger, self.parts.engine))
        with contextlib.suppress(RefusedError):
            self.parts.carry_out(driver, driver.action, dropped)
        if stale:
            store, ledger, engine = before
            assert self.parts.store == store
            assert self.parts.engine == engine or engine.fence <= driver.token
            assert self.parts.learner.ledger == ledger or self.parts.learner.fence <= driver.token
        if fate is not Fate.DONE:
            driver.action = None

    @rule(times=st.integers(1, 12))
    def look_and_act_in_peace(self, times: int) -> None:
        """The usual case: the driver with the lease decides, acts and is answered."""
        for _ in range(times):
            self._in_peace()

    @rule(crash=st.sampled_from(Crash), fate=st.sampled_from(Fate), dropped=DROPPED)
    def something_dies_between_look_and_act(self, crash: Crash, fate: Fate, dropped: set[int]) -> None:
        self.look(-1)
        self.parts.lose(crash)
        self.act(-1, fate, dropped)

    @precondition(lambda self: len(self.drivers) < 3)
    @rule(crash=st.sampled_from(Crash), times=st.integers(0, 12))
    def a_driver_sleeps_through_its_lease_and_acts(self, crash: Crash, times: int) -> None:
        self.parts.lose(crash)
        self.look(-1)
        asleep = len(self.drivers) - 1
        self.another_driver_takes_the_lease()
        for _ in range(times):
            self._in_peace()
        self.act(asleep, Fate.DONE, set())

    @precondition(lambda self: len(self.drivers) < 3)
    @rule()
    def another_driver_takes_the_lease(self) -> None:
        """The one before may be dead, or only asleep."""
        self.parts.store.token += 1
        self.drivers.append(Driver(self.parts.store.token))

    @rule()
    def the_first_driver_is_gone(self) -> None:
        if len(self.drivers) > 1:
            self.drivers.pop(0)

    # --- crashes ----------------------------------------------------------------------------------------------------

    @rule()
    def the_learner_works(self) -> None:
        if self.parts.learner.under_way is not None:
            self.parts.learner.finish()

    @rule(crash=st.sampled_from(Crash))
    def something_dies(self, crash: Crash) -> None:
        self.parts.lose(crash)

    # --- what holds -------------------------------------------------------------------------------------------------

    @invariant()
    def the_learner_has_applied_the_sealed_batches_from_the_first_on_each_once(self) -> None:
        view = self.parts.learner.view
        if view.run_id == RUN:
            assert view.digests == self.parts.store.sealed[: len(view.digests)]
            assert self.parts.learner.weights == self.parts.store.weights(len(view.digests))

    @invariant()
    def no_step_was_ever_trained_with_two_batches(self) -> None:
        for update, digests in self.parts.learner.trained.items():
            assert digests == {self.parts.store.sealed[update - 1]}

    @invariant()
    def no_two_sets_of_weights_share_a_name(self) -> None:
        if self.parts.learner.ledger.run_id == RUN:
            held = self.names.setdefault(self.parts.learner.ledger.version, self.parts.learner.weights)
            assert held == self.parts.learner.weights
        if self.parts.engine.version.lineage != "engine":
            assert self.names.get(self.parts.engine.version, self.parts.engine.weights) == self.parts.engine.weights

    @invariant()
    def every_step_was_rolled_out_by_what_the_steps_before_it_made(self) -> None:
        for number, step in enumerate(self.parts.store.steps):
            if step.digest:
                assert step.behaviour == self.parts.store.weights(number)

    @invariant()
    def a_step_beyond_sealed_is_followed_by_none_before_it_is_committed(self) -> None:
        assert all(step.state is StepState.COMMITTED for step in self.parts.store.steps[:-1])

    @invariant()
    def the_tasks_trained_are_the_epochs_in_order_but_for_those_put_off_and_the_quarantined(self) -> None:
        steps = [step for step in self.parts.store.steps if step.digest]
        queue = steps[-1].queue if steps else TaskQueue(0)
        trained = Counter(task for step in steps for task in step.task_ids if task not in step.dropped)
        seen = set(epoch_order(queue.seed, queue.epoch, TASKS)[: queue.position])
        put_off = Counter(queue.postponed)
        for task in set(TASKS) - self.parts.store.quarantined:
            assert trained[task] + put_off[task] == queue.epoch + (task in seen), task

    def teardown(self) -> None:
        """Without further crashes two more steps are committed, each with the engine at the learner's version."""
        self.parts.store.token += 1
        self.drivers = [Driver(self.parts.store.token)]
        before = len(self.parts.store.steps)
        for _ in range(40 + before):
            if self.parts.store.quarantined == set(TASKS):
                return
            committing = self.parts.store.state is StepState.SYNCED
            self._in_peace()
            if committing and len(self.parts.store.steps) > before:
                assert self.parts.engine.version == self.parts.learner.ledger.version
                assert self.parts.engine.weights == self.parts.learner.weights == self.parts.store.weights(before + 2)
            if len(self.parts.store.steps) == before + 2 and self.parts.store.state is StepState.COMMITTED:
                return
        raise AssertionError("no progress")

    def _in_peace(self) -> None:
        driver = self.drivers[-1]
        if self.parts.learner.under_way is not None:
            self.parts.learner.finish()
        self.look(len(self.drivers) - 1)
        assert driver.action is not None
        self.parts.carry_out(driver, driver.action, set())
        if self.parts.learner.under_way is not None:
            self.parts.learner.finish()
        driver.action = None


TestCrashes = Crashes.TestCase
TestCrashes.settings = settings(
    max_examples=150, stateful_step_count=60, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
