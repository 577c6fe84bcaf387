"""Each invariant of design 5.5 on a good cluster, and on one that was broken by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from im_actors.core import invariants
from im_actors.core.facts import Fact, pack_state
from im_actors.core.invariants import Ledger, Running
from im_actors.core.knowledge import Knowledge
from im_actors.core.model import Event, EventKind, Record, encode_event, make_record
from im_actors.core.replica import Replica, SlotLog
from im_actors.core.rules import Accept, Known, Request
from im_actors.errors import InvariantBroken
from tests.core.bench import SLOT, Bench, BenchReplica


class Watched:
    """A serving slot with some events, and the ledger that has seen all of it."""

    def __init__(self) -> None:
        self.bench = Bench()
        self.ledger = Ledger()
        self.bench.serve()
        self.stepped()
        for n in (1, 2, 3):
            self.send("s", n)
        self.send("other", 1)
        self.bench.wait(5)
        self.bench.deliver()
        self.bench.apply("r1", "r2")
        self.check()

    def send(self, session: str, n: int) -> None:
        self.bench.send(session, "a/1", n)
        self.stepped()

    @property
    def disks(self) -> dict[str, Any]:
        return {r.disk.identity: r.disk for r in self.bench.replicas.values()}

    @property
    def r1(self) -> BenchReplica:
        return self.bench.replicas["r1"]

    @property
    def r3(self) -> BenchReplica:
        """It holds everything, and has applied nothing."""
        return self.bench.replicas["r3"]

    def stepped(self) -> None:
        invariants.owner_stepped(self.ledger, self.bench.owner, self.disks)

    def check(self) -> None:
        running = [Running(r.member, r.machine, r.disk) for r in self.bench.replicas.values()]
        views = {SLOT: self.bench.view}
        invariants.check_cluster(self.ledger, [self.bench.owner], running, views)

    def commit(self, *records: Record, on: tuple[str, ...] = ("r1", "r2", "r3")) -> None:
        """Make the owner believe that records are committed, whatever the disks hold."""
        owner = self.bench.owner
        for record in records:
            for name in on:
                self.bench.replicas[name].disk.journal[SLOT][record.lsn] = (record, 0)
            owner.commit_lsn = owner.last_lsn = record.lsn
            for state in owner.members.values():
                state.durable_lsn = record.lsn
        self.stepped()


@pytest.fixture
def watched() -> Watched:
    return Watched()


def record(
    lsn: int, *events: tuple[str, int, str, int], epoch: int = 1, body: bytes = b""
) -> Record:
    """A record with events (session, seq, device, n)."""
    data = [encode_event(Event(s, seq, lsn, 1, device, n, body)) for s, seq, device, n in events]
    return make_record(SLOT, lsn, epoch, data)


NEXT = 6
"""The first lsn above what is committed."""


def test_a_good_cluster_passes_again_and_again(watched: Watched) -> None:
    assert watched.ledger.last_lsn(SLOT) == NEXT - 1
    for n in (4, 5, 6):
        watched.send("s", n)
        watched.check()
    watched.bench.serve("again", force=True)
    watched.stepped()
    watched.bench.replace_owner("shard.2")
    watched.stepped()
    watched.r1.restart()
    watched.check()
    invariants.acked(watched.ledger, ("s", "a/1", 2), 2)
    invariants.delivered(watched.ledger, "s", 6)


# -- I1 and I2: commits ------------------------------------------------------------------------


def test_i1_a_record_that_is_on_two_disks_only(watched: Watched) -> None:
    with pytest.raises(InvariantBroken, match=r"^I1"):
        watched.commit(record(NEXT, ("s", 4, "a/1", 4)), on=("r1", "r2"))


def test_i1_three_disks_with_two_contents(watched: Watched) -> None:
    watched.r3.disk.journal[SLOT][NEXT] = (record(NEXT, ("s", 4, "a/1", 4), body=b"other"), 0)
    with pytest.raises(InvariantBroken, match=r"^I1"):
        watched.commit(record(NEXT, ("s", 4, "a/1", 4)), on=("r1", "r2"))


def test_i2_one_epoch_has_one_owner(watched: Watched) -> None:
    watched.bench.owner.me = "shard.2"
    with pytest.raises(InvariantBroken, match=r"^I2"):
        watched.stepped()


def test_i2_a_deposed_owner_that_commits_in_its_successors_place(watched: Watched) -> None:
    deposed = watched.bench.owner
    watched.bench.replace_owner("shard.2")
    watched.stepped()
    deposed.commit_lsn = deposed.last_lsn = NEXT
    for state in deposed.members.values():
        state.durable_lsn = NEXT
    with pytest.raises(InvariantBroken, match=r"^I2"):
        invariants.owner_stepped(watched.ledger, deposed, watched.disks)


# -- I3 and I4: logs ---------------------------------------------------------------------------


def test_i3_a_replica_that_believes_in_other_bytes(watched: Watched) -> None:
    watched.send("s", 4)
    watched.send("s", 5)
    other = record(NEXT, ("s", 4, "a/1", 4), body=b"other")
    watched.r3.disk.journal[SLOT][NEXT] = (other, 0)
    watched.r3.log.checksums[NEXT] = other.checksum
    with pytest.raises(InvariantBroken, match=r"^I3.*elsewhere"):
        watched.check()


def test_i3_a_cut_below_the_commit_point(watched: Watched) -> None:
    watched.r3.log.held[-1][1] = 3
    with pytest.raises(InvariantBroken, match=r"I4|I3"):
        watched.check()
    covered = invariants.Covered(watched.r3.machine)
    with pytest.raises(InvariantBroken, match=r"^I3.*cut to 3"):
        invariants.commit_point_stays(watched.r3.machine, SLOT, watched.r3.log, covered)


def test_i3_a_member_that_lacks_a_committed_record(watched: Watched) -> None:
    del watched.r3.disk.journal[SLOT][NEXT - 1]
    with pytest.raises(InvariantBroken, match=r"^I3.*lacks lsn 5"):
        watched.check()


@pytest.mark.parametrize(
    "damage",
    [{"epochs": ((2, 1), (1, 3))}, {"held": [[1, 5], [3, 6]]}, {"commit_lsn": 50}],
)
def test_i4_a_log_out_of_order(watched: Watched, damage: dict[str, Any]) -> None:
    watched.r3.log.promised = 2
    for name, value in damage.items():
        setattr(watched.r3.log, name, value)
    with pytest.raises(InvariantBroken, match=r"^I4"):
        watched.check()


def test_i4_an_epoch_that_goes_back_in_the_committed_log(watched: Watched) -> None:
    with pytest.raises(InvariantBroken, match=r"^I4"):
        watched.commit(record(NEXT, epoch=0))


# -- I5 and I6: sessions -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("events", "name"),
    [
        ([("s", 5, "a/1", 4)], "I5.*follows 3"),  # A hole.
        ([("s", 3, "a/1", 4)], "I5.*follows 3"),  # A seq given twice.
        ([("s", 4, "a/1", 2)], "I5.*has seq 2 and 4"),  # A message twice.
        ([("s", 4, "a/1", 5)], "I6.*5 after 3"),  # One of them lost, or out of order.
        ([("new", 2, "b/1", 1)], "I5.*follows 0"),
        ([("new", 1, "b/1", 2)], "I6.*2 after 0"),
    ],
)
def test_i5_i6_sessions_count_without_holes_and_devices_too(
    watched: Watched, events: list[tuple[str, int, str, int]], name: str
) -> None:
    with pytest.raises(InvariantBroken, match=f"^{name}"):
        watched.commit(record(NEXT, *events))


@pytest.mark.parametrize(("n", "seq"), [(2, 3), (4, 4)])
def test_i5_an_ack_names_the_seq_of_the_log(watched: Watched, n: int, seq: int) -> None:
    with pytest.raises(InvariantBroken, match=r"^I5"):
        invariants.acked(watched.ledger, ("s", "a/1", n), seq)


# -- I7: nothing above the commit point --------------------------------------------------------


def test_i7_an_event_shown_before_it_is_committed(watched: Watched) -> None:
    invariants.delivered(watched.ledger, "s", 3)
    for session, seq in (("s", 4), ("never seen", 1)):
        with pytest.raises(InvariantBroken, match=r"^I7"):
            invariants.delivered(watched.ledger, session, seq)


def test_i7_a_replica_that_believes_in_more_than_is_committed(watched: Watched) -> None:
    watched.r3.log.held[-1][1] = watched.r3.log.commit_lsn = NEXT
    with pytest.raises(InvariantBroken, match=r"^I7.*believes"):
        watched.check()


def test_i7_a_replica_that_applied_what_it_does_not_believe_in(watched: Watched) -> None:
    watched.r3.log.applied_lsn = watched.r3.log.commit_lsn + 1
    with pytest.raises(InvariantBroken, match=r"^I7.*applied"):
        watched.check()


# -- I8: nothing goes back ---------------------------------------------------------------------


def test_i8_a_promise_that_was_forgotten(watched: Watched) -> None:
    invariants.promise_given(watched.ledger, watched.r3.disk.identity, SLOT, 4)
    with pytest.raises(InvariantBroken, match=r"^I8.*promised 4, then 1"):
        watched.check()


def test_i8_a_view_that_goes_back(watched: Watched) -> None:
    watched.bench.view = watched.bench.view._replace(epoch=0)
    with pytest.raises(InvariantBroken, match=r"^I8"):
        watched.check()


def test_i8_a_commit_point_that_goes_back(watched: Watched) -> None:
    watched.r3.log.commit_lsn -= 1
    with pytest.raises(InvariantBroken, match=r"^I8"):
        watched.check()


def test_i8_an_owner_that_goes_back(watched: Watched) -> None:
    watched.bench.owner.commit_lsn -= 1
    with pytest.raises(InvariantBroken, match=r"^I8"):
        watched.stepped()


# -- I9: unknown is never taken for absent -----------------------------------------------------


def test_i9_a_complete_history_with_a_hole(watched: Watched) -> None:
    watched.bench.apply("r3")
    del watched.r3.disk.history[SLOT][2]
    with pytest.raises(InvariantBroken, match=r"^I9.*without 2"):
        watched.check()


def _forget_events(watched: Watched) -> None:
    watched.bench.owner.serving.sessions["s"].committed_seq = 2


def _forget_device(watched: Watched) -> None:
    watched.bench.owner.serving.sessions["s"].devices["a/1"].last_n = 2


@pytest.mark.parametrize("forget", [_forget_events, _forget_device])
def test_i9_an_owner_that_does_not_know_what_is_committed(
    watched: Watched, forget: Callable[[Watched], None]
) -> None:
    forget(watched)
    with pytest.raises(InvariantBroken, match=r"^I9"):
        watched.check()


def _a_state(watched: Watched) -> Knowledge:
    """Two changes of a session's state, committed and known."""
    for n, value in ((4, b"old"), (5, b"new")):
        body = pack_state("set", [], [("x", 0, value), ("gone", 0, None)])
        watched.bench.decide = watched.bench.owner.serving.decide = _takes_everything
        watched.bench.submit("s", "a/1", n, body=body, kind=EventKind.GROUP)
        watched.bench.deliver()
        watched.stepped()
    knowledge = watched.bench.owner.serving.sessions["s"].know()
    assert sorted(knowledge.facts) == ["gone", "x"]
    watched.check()
    return knowledge


def _takes_everything(known: Known, request: Request) -> Accept:
    return Accept(request.kind, request.body)


@pytest.mark.parametrize(
    ("key", "said"),
    [("x", Fact("x", 4, 0, b"old")), ("x", None), ("gone", Fact("gone", 5, 0, b"x"))],
)
def test_i9_an_owner_that_knows_a_fact_otherwise(
    watched: Watched, key: str, said: Fact | None
) -> None:
    _a_state(watched).facts[key] = said
    with pytest.raises(InvariantBroken, match=r"^I9.*is known as"):
        watched.check()


def test_i9_an_owner_that_takes_a_fact_for_absent(watched: Watched) -> None:
    knowledge = _a_state(watched)
    knowledge.forget_settled(5, 9, 9)
    knowledge.loaded(("x",), ())
    with pytest.raises(InvariantBroken, match=r"^I9.*is known as None"):
        watched.check()


def test_i9_what_has_not_committed_is_not_compared(watched: Watched) -> None:
    _a_state(watched).said([Fact("x", 6, 0, b"newest")])
    watched.check()


# -- the error ---------------------------------------------------------------------------------


def test_an_error_carries_the_story_of_the_slot(watched: Watched) -> None:
    watched.bench.owner.me = "shard.2"
    with pytest.raises(InvariantBroken, match="serves epoch 1 from lsn 1"):
        watched.stepped()
    watched.r3.log.applied_lsn = 99
    with pytest.raises(InvariantBroken, match="prepared for epoch 1"):
        watched.check()


def test_a_replica_that_comes_back_is_compared_anew(watched: Watched) -> None:
    # What a commit point promised in memory may be lost by a crash; that is not going back.
    log = SlotLog(promised=1, epochs=((1, 1),), held=[[1, 5]], commit_lsn=4)
    watched.r3.machine = Replica("r3", watched.r3.disk.identity, {SLOT: log})
    watched.check()
