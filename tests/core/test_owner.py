"""An owner: the phases of an attempt, the write path, and what it says when it loses the slot."""

from __future__ import annotations

from typing import Any

import pytest

from im_actors.core import owner as own
from im_actors.core.messages import (
    Append,
    Appended,
    Drop,
    Fetched,
    FindKey,
    KeyFound,
    LoadSessions,
    Need,
    Prepare,
    Refused,
    Seal,
    Sealed,
)
from im_actors.core.model import (
    DEVICE_WINDOW,
    EventKind,
    Member,
    ViewState,
    decode_event,
    record_events,
    record_keys,
)
from im_actors.core.owner import OwnerSettings, Phase
from im_actors.core.serving import ServingLimits
from im_actors.errors import InvariantBroken, KeyConflict, Overloaded, SlotMoving, Unknown
from tests.core.bench import SLOT, Bench


def serving(*args: Any, **kwargs: Any) -> Bench:
    bench = Bench(*args, **kwargs)
    bench.serve()
    return bench


def told(bench: Bench, kind: type) -> list[Any]:
    return [effect for effect in bench.told if isinstance(effect, kind)]


def waiting(bench: Bench, kind: type) -> list[tuple[Member, Any]]:
    """Messages of a kind that are on their way."""
    return [(member, message) for member, message in bench.out if isinstance(message, kind)]


def hold(bench: Bench, kind: type) -> list[tuple[Member, Any]]:
    """Take messages of a kind out of the network."""
    held = waiting(bench, kind)
    bench.out = [entry for entry in bench.out if entry not in held]
    return held


def settle(bench: Bench, ms: int = 10) -> None:
    """Until everybody knows the commit point."""
    bench.wait(ms)
    bench.deliver()


def phase(bench: Bench) -> Phase:
    return bench.owner.phase


def committed(bench: Bench, replica: str = "r1") -> list[tuple[str, str, int, int]]:
    """(session, device, n, seq) of each event of the log."""
    disk = bench.replicas[replica].disk
    found = []
    for lsn in range(1, bench.owner.commit_lsn + 1):
        record = disk.record(SLOT, lsn)
        assert record is not None
        for event in map(decode_event, record_events(record.payload)):
            found.append((event.session, event.device, event.n, event.seq))
    return found


# -- an attempt from its beginning to its end --------------------------------------------------


def test_a_takeover_claims_seals_prepares_opens_and_activates_in_this_order() -> None:
    bench = Bench()
    bench.store_answers = False
    bench.tell(own.Take("start"))
    assert isinstance(bench.store_asked.pop(), own.ReadView)
    bench.tell(own.ViewRead(bench.view))
    claim = bench.store_asked.pop()
    assert claim.new == bench.view._replace(epoch=1, state=ViewState.RECOVERING, owner="shard.1")
    assert claim.new.members == bench.view.members
    assert bench.out == []  # Nobody is sealed before the claim is known to hold.
    bench.tell(own.ViewSwapped(claim.new))
    assert [type(m) for _, m in bench.out] == [Seal] * 3
    for kind, then in ((Seal, Prepare), (Prepare, Append)):
        for member, message in hold(bench, kind):
            assert waiting(bench, then) == []  # Each step waits for all three.
            bench.carry(member, message)
    assert phase(bench) is Phase.OPENING
    *first, last = hold(bench, Append)
    for member, message in first:
        bench.carry(member, message)
    assert bench.store_asked == []  # An EpochStart on two disks is not on three.
    bench.carry(*last)
    (swap,) = bench.store_asked
    assert (swap.old, swap.new.state) == (claim.new, ViewState.ACTIVE)
    assert phase(bench) is Phase.ACTIVATING
    bench.tell(own.ViewSwapped(swap.new))
    assert phase(bench) is Phase.SERVING
    assert told(bench, own.Activated) == [own.Activated(swap.new)]
    assert bench.owner.commit_lsn == 1


def test_take_is_not_for_a_slot_that_is_served() -> None:
    bench = serving()
    bench.tell(own.Take("again"))
    assert (phase(bench), bench.owner.epoch) == (Phase.SERVING, 1)
    bench.serve("members change", force=True)
    assert bench.owner.epoch == 2


def test_a_view_that_cannot_be_read_is_read_again() -> None:
    bench = Bench()
    bench.store_answers = False
    bench.tell(own.Take("start"))
    bench.tell(own.ViewRead(None))
    assert phase(bench) is Phase.WAITING
    bench.store_asked.clear()
    bench.wait(200)
    assert [type(effect) for effect in bench.store_asked] == [own.ReadView]


def test_a_claim_that_somebody_else_won_starts_over() -> None:
    bench = Bench()
    bench.store_answers = False
    bench.tell(own.Take("start"))
    bench.tell(own.ViewRead(bench.view))
    bench.tell(own.ViewSwapped(bench.view._replace(epoch=1, owner="other")))
    assert phase(bench) is Phase.WAITING
    assert bench.out == []


@pytest.mark.parametrize("took_effect", [True, False])
@pytest.mark.parametrize("swap", [1, 2])
def test_a_swap_whose_answer_is_lost_is_asked_about_until_it_is_known(
    swap: int, took_effect: bool
) -> None:
    bench = Bench()
    bench.store_answers = False
    bench.tell(own.Take("start"))
    bench.tell(own.ViewRead(bench.view))
    if swap == 2:
        bench.view = bench.store_asked[-1].new
        bench.tell(own.ViewSwapped(bench.view))
        bench.deliver()
    asked = bench.store_asked[-1]
    if took_effect:
        bench.view = asked.new
    bench.store_asked.clear()
    before = phase(bench)
    bench.tell(own.ViewSwapped(None))
    bench.tell(own.ViewRead(None))  # Still not known.
    assert phase(bench) is before
    assert told(bench, own.Activated) == []
    bench.tell(own.ViewRead(bench.view))
    if not took_effect:
        assert bench.store_asked[-1] == asked  # The same swap again can take effect only once.
        bench.view = asked.new
        bench.tell(own.ViewSwapped(asked.new))
    assert phase(bench) is (Phase.SEALING if swap == 1 else Phase.SERVING)


def test_an_activation_that_lost_gives_everything_up() -> None:
    bench = Bench()
    bench.tell(own.Take("start"))
    bench.deliver(lambda _, message: isinstance(message, Append))
    bench.store_answers = False
    for member in bench.view.members:
        bench.tell(own.ReplicaAnswered(member, Appended(SLOT, 1, 1, 0, 0, True)))
    assert phase(bench) is Phase.ACTIVATING
    bench.tell(own.ViewSwapped(bench.view._replace(epoch=2, owner="other")))
    assert phase(bench) is Phase.WAITING
    assert told(bench, own.Activated) == []


@pytest.mark.parametrize("lost", [Seal, Prepare, Append])
def test_a_lost_message_of_an_attempt_costs_time_and_nothing_else(lost: type) -> None:
    bench = serving()
    bench.send("s", "a/1", 1, 2)
    bench.tell(own.Take("again", True))
    once: list[Any] = []

    def lose(member: Member, message: Any) -> bool:
        if isinstance(message, lost) and not once:
            once.append(message)
            return True
        return False

    for _ in range(30):
        bench.deliver(lose)
        if phase(bench) is Phase.SERVING:
            break
        bench.wait(500)
    assert once
    assert phase(bench) is Phase.SERVING
    assert committed(bench) == [("s", "a/1", 1, 1), ("s", "a/1", 2, 2)]


def test_a_tail_that_is_not_delivered_ends_the_attempt() -> None:
    bench = serving()
    bench.send("s", "a/1", 1)
    bench.tell(own.Take("again", True))
    while phase(bench) is not Phase.COPYING:
        bench.carry(*bench.out.pop(0))
    epoch = bench.owner.epoch
    best = bench.owner.attempt.plan.best
    first = bench.owner.attempt.plan.fetch_from
    bench.out.clear()
    bench.tell(own.ReplicaAnswered(best, Fetched(SLOT, epoch, first, ())))
    assert phase(bench) is Phase.WAITING


@pytest.mark.parametrize("damage", [{"payload": b"x"}, {"lsn": 3}, {"epoch": 9}])
def test_a_damaged_tail_is_never_taken_for_the_log(damage: dict[str, Any]) -> None:
    bench = serving()
    bench.send("s", "a/1", 1)
    bench.tell(own.Take("again", True))
    while phase(bench) is not Phase.COPYING:
        bench.carry(*bench.out.pop(0))
    plan = bench.owner.attempt.plan
    record = bench.replicas["r1"].disk.record(SLOT, plan.fetch_from)
    answer = Fetched(SLOT, bench.owner.epoch, plan.fetch_from, (record._replace(**damage),))
    bench.tell(own.ReplicaAnswered(plan.best, answer))
    assert phase(bench) is Phase.WAITING


# -- who may be unreachable --------------------------------------------------------------------


def test_without_any_member_the_slot_waits_and_says_for_whom() -> None:
    bench = serving(5)
    for member in bench.view.members:
        bench.tell(own.MemberDown(member))
    bench.tell(own.Take("moved", True))
    bench.wait(60_000)
    # Two empty spares are up. Unknown is never taken for absent.
    assert phase(bench) is Phase.SEALING
    assert all(name in bench.owner.reason for name in ("r1", "r2", "r3"))
    bench.tell(own.MemberUp(bench.view.members[1]))
    for _ in range(3):
        bench.deliver()
        bench.wait(600)
    assert phase(bench) is Phase.SERVING
    assert bench.view.members[0].replica == "r2"


def test_one_member_and_two_spares_are_enough() -> None:
    bench = serving(5)
    bench.send("s", "a/1", 1, 2, 3)
    for name in ("r1", "r2"):
        bench.tell(own.MemberDown(bench.replicas[name].member))
    bench.tell(own.Take("two are lost", True))
    for _ in range(3):
        bench.deliver()
        bench.wait(300)
    assert phase(bench) is Phase.SERVING
    assert {m.replica for m in bench.view.members} == {"r3", "r4", "r5"}
    assert [n for _, _, n, _ in committed(bench, "r4")] == [1, 2, 3]


def test_a_lost_frame_of_a_long_tail_is_sent_again_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(own, "APPEND_BYTES_MAX", 1)
    bench = serving(4)
    for n in range(1, 21):
        bench.send("s", "a/1", n)
    bench.tell(own.MemberDown(bench.replicas["r1"].member))
    bench.tell(own.Take("r1 is lost", True))
    frames: list[int] = []

    def lose(member: Member, message: Any) -> bool:
        if not isinstance(message, Append) or member.replica != "r4" or not message.records:
            return False
        frames.append(message.records[0].lsn)
        return len(frames) == 1

    for _ in range(3):
        bench.deliver(lose)
        bench.wait(300)
    assert phase(bench) is Phase.SERVING
    # All that follow the lost frame do not join, and each asks for the same.
    assert len(frames) == 2 * len(set(frames)) > 40


def test_a_replaced_disk_is_another_member() -> None:
    bench = serving()
    old = bench.replicas["r1"]
    bench.tell(own.MemberDown(old.member))
    fresh = type(old)("r1", "r1")
    fresh.disk.identity = fresh.machine.disk = "r1-disk1"
    bench.replicas["r1"] = fresh
    bench.tell(own.ReplicasKnown(bench.infos()))
    bench.tell(own.MemberUp(fresh.member))
    for _ in range(3):
        bench.deliver()
        bench.wait(300)
    assert phase(bench) is Phase.SERVING
    assert fresh.member in bench.view.members
    assert old.member not in bench.view.members


def test_a_spare_that_stays_silent_is_not_waited_for_alone() -> None:
    bench = serving(5)
    dead = bench.replicas["r1"].member
    bench.tell(own.MemberDown(dead))
    bench.tell(own.Take("r1 is lost", True))
    bench.deliver()
    bench.wait(500)
    ((mute, _),) = waiting(bench, Seal)
    for _ in range(5):
        bench.deliver(lambda member, _: member == mute)
        bench.wait(300)
    assert phase(bench) is Phase.SERVING
    assert mute not in bench.view.members


def test_the_spare_is_taken_from_a_host_of_its_own() -> None:
    hosts = {"r1": "h1", "r2": "h2", "r3": "h3", "r4": "h1", "r5": "h2", "r6": "h1", "r7": "h9"}
    bench = serving(7, hosts=hosts)
    bench.tell(own.MemberDown(bench.replicas["r3"].member))
    bench.tell(own.Take("r3 is lost", True))
    for _ in range(3):
        bench.deliver()
        bench.wait(300)
    assert {m.replica for m in bench.view.members} == {"r1", "r2", "r7"}


def test_a_member_that_goes_after_its_answer_does_not_hold_up_the_attempt() -> None:
    bench = Bench(4)
    bench.tell(own.Take("start"))
    (member, message), *_ = hold(bench, Seal)
    bench.carry(member, message)
    bench.tell(own.MemberDown(member))
    for other in bench.view.members[1:]:
        bench.carry(other, message)
    started = bench.now_ms
    while phase(bench) is not Phase.SERVING and bench.now_ms < started + 10_000:
        bench.deliver(lambda to, _: to == member)
        bench.wait(100)
    assert bench.now_ms - started < 2_000


def test_a_member_that_goes_while_it_is_copied_to_ends_the_attempt() -> None:
    bench = serving(4)
    bench.tell(own.Take("again", True))
    while phase(bench) is not Phase.COPYING:
        bench.carry(*bench.out.pop(0))
    bench.tell(own.MemberDown(bench.view.members[0]))
    assert phase(bench) is Phase.WAITING


def test_a_member_out_of_reach_is_replaced_after_a_while() -> None:
    bench = serving(4)
    bench.tell(own.MemberDown(bench.view.members[0]))
    bench.wait(3_999)
    assert phase(bench) is Phase.SERVING
    bench.wait(1)
    assert phase(bench) is not Phase.SERVING


def test_a_member_is_not_replaced_when_there_is_no_spare() -> None:
    bench = serving(3)
    bench.tell(own.MemberDown(bench.view.members[0]))
    bench.wait(60_000)
    assert phase(bench) is Phase.SERVING


def test_a_member_that_is_reached_and_never_answers_is_replaced_too() -> None:
    # Its disk hangs: the link is up, and no event would ever come.
    bench = serving(4)
    bench.send("s", "a/1", 1)
    mute = bench.view.members[0]
    bench.answers()
    bench.submit("s", "a/1", 2)
    for _ in range(20):
        bench.deliver(lambda member, _: member == mute)
        bench.wait(500)
    assert [(a.code, a.seq) for a in bench.answers()] == [(0, 2)]
    assert mute not in bench.view.members


def test_a_member_that_comes_back_in_time_is_not_held_silent() -> None:
    bench = serving(4)
    bench.send("s", "a/1", 1)
    member = bench.view.members[0]
    bench.submit("s", "a/1", 2)
    bench.tell(own.MemberDown(member))
    for _ in range(3):
        bench.deliver(lambda to, _: to == member)
        bench.wait(1_200)
    bench.tell(own.MemberUp(member))
    bench.deliver()
    bench.wait(10)
    assert (phase(bench), bench.owner.epoch) == (Phase.SERVING, 1)


# -- the view store ----------------------------------------------------------------------------


def promise(bench: Bench, epoch: int) -> None:
    """A replica refuses what is under way, because it has promised more."""
    answer = Refused(SLOT, bench.owner.epoch, epoch, "a newer epoch is promised")
    bench.tell(own.ReplicaAnswered(bench.view.members[0], answer))


def test_a_store_that_was_rolled_back_stops_everything() -> None:
    bench = Bench()
    for replica in bench.replicas.values():
        replica.ask(Seal(SLOT, 7, bench.view._replace(epoch=7, owner="other")))
    bench.tell(own.Take("start"))
    bench.deliver()
    bench.wait(5_000)
    assert phase(bench) is Phase.HALTED
    assert "rolled back" in bench.alarms()[0]
    bench.submit("s", "a/1", 1)
    assert [a.code for a in bench.answers()] == [SlotMoving.code]
    bench.tell(own.Take("again", True))
    assert phase(bench) is Phase.HALTED


def test_a_store_that_gives_one_epoch_twice_was_rolled_back() -> None:
    bench = Bench()
    for replica in bench.replicas.values():
        replica.ask(Seal(SLOT, 1, bench.view._replace(epoch=1, owner="other")))
    bench.tell(own.Take("start"))
    bench.deliver()
    assert phase(bench) is Phase.HALTED
    assert "rolled back" in bench.alarms()[0]


def test_a_read_from_before_a_promise_is_no_roll_back() -> None:
    bench = serving()
    bench.store_answers = False
    bench.tell(own.Take("again", True))
    read = bench.view
    promise(bench, 5)  # Meanwhile somebody else has claimed the slot.
    bench.store_asked.clear()
    bench.tell(own.ViewRead(read))
    assert [type(effect) for effect in bench.store_asked] == [own.ReadView]
    bench.tell(own.ViewRead(read))  # Read after the promise was known.
    assert phase(bench) is Phase.HALTED


def test_the_answer_to_an_earlier_read_is_no_roll_back() -> None:
    bench = Bench()
    bench.store_answers = False
    bench.tell(own.Take("start"))
    bench.tell(own.ViewRead(bench.view))
    before, bench.view = bench.view, bench.owner.attempt.claim
    bench.tell(own.ViewSwapped(None))  # Read 2, which takes very long.
    bench.wait(5_001)  # Read 3.
    bench.tell(own.ViewRead(bench.view))
    promise(bench, 5)
    bench.wait(1_000)
    assert phase(bench) is Phase.READING  # Read 4.
    bench.tell(own.ViewRead(before))  # The answer to read 2.
    assert phase(bench) is Phase.READING
    bench.tell(own.ViewRead(bench.view._replace(epoch=5, owner="other")))
    assert phase(bench) is Phase.CLAIMING


def test_a_log_below_a_reported_commit_point_halts() -> None:
    bench = Bench()
    bench.tell(own.Take("start"))
    for member in bench.view.members:
        answer = Sealed(SLOT, 1, 5, ((1, 1),), 6, 1, 0, True)
        bench.tell(own.ReplicaAnswered(member, answer))
    assert phase(bench) is Phase.HALTED
    assert waiting(bench, Prepare) == []


# -- writing -----------------------------------------------------------------------------------


def test_nothing_is_acked_before_it_is_on_three_disks() -> None:
    bench = serving()
    bench.send("s", "a/1", 1)
    bench.answers()
    bench.submit("s", "a/1", 2)
    *two, third = hold(bench, Append)
    for member, message in two * 2:  # Two of them twice are not three.
        bench.carry(member, message)
    assert bench.answers() == []
    assert told(bench, own.Published)[-1].events[0].seq == 1
    bench.carry(*third)
    (answer,) = bench.answers()
    assert (answer.code, answer.seq, answer.epoch) == (0, 2, 1)
    assert told(bench, own.Published)[-1].events[0].seq == 2


def test_the_ack_comes_before_the_push() -> None:
    bench = serving()
    bench.send("s", "a/1", 1)
    kinds = [type(effect) for effect in bench.told]
    assert kinds.index(own.Answered) < kinds.index(own.Published)


def test_what_arrives_while_a_record_is_in_flight_is_the_next_record() -> None:
    bench = serving(limits=ServingLimits(records_in_flight_max=1))
    bench.send("s", "a/1", 1)
    for n in (2, 3, 4):
        bench.submit("s", "a/1", n)
    bench.deliver()
    assert bench.owner.commit_lsn == 4  # EpochStart, 1, 2, and 3 with 4.
    assert [seq for *_, seq in committed(bench)] == [1, 2, 3, 4]


def test_acks_of_former_epochs_count_for_nothing() -> None:
    bench = serving()
    bench.send("s", "a/1", 1)
    bench.serve("again", force=True)
    bench.answers()
    bench.submit("s", "a/1", 2)
    for member in bench.view.members:
        bench.tell(own.ReplicaAnswered(member, Appended(SLOT, 1, 99, 0, 0, True)))
    assert bench.answers() == []


def test_an_answer_of_who_is_no_member_counts_for_nothing() -> None:
    bench = serving(4)
    bench.tell(own.ReplicaAnswered(bench.replicas["r4"].member, Appended(SLOT, 1, 99, 0, 0, True)))
    assert bench.owner.commit_lsn == 1


def test_a_lost_append_is_sent_again() -> None:
    bench = serving()
    bench.send("s", "a/1", 1)
    bench.answers()
    bench.submit("s", "a/1", 2)
    bench.out.clear()
    bench.wait(1_000)
    bench.deliver()
    assert [a.seq for a in bench.answers()] == [2]


def test_an_overtaken_append_is_asked_for() -> None:
    bench = serving(limits=ServingLimits(records_in_flight_max=3))
    bench.send("s", "a/1", 1)
    bench.answers()
    bench.submit("s", "a/1", 2)
    bench.submit("s", "a/1", 3)
    for member, message in reversed(hold(bench, Append)):
        bench.carry(member, message)
    bench.deliver()
    assert [a.seq for a in bench.answers()] == [2, 3]
    assert bench.alarms() == []


def test_a_member_that_lost_what_it_acknowledged_is_an_alarm() -> None:
    bench = serving()
    bench.send("s", "a/1", 1)
    for _ in range(own.NEEDS_MAX + 1):
        bench.tell(own.ReplicaAnswered(bench.view.members[0], Need(SLOT, 1, 1)))
    assert "lost records" in bench.alarms()[0]
    assert phase(bench) is not Phase.SERVING


def test_when_nothing_follows_the_commit_point_is_told_alone() -> None:
    bench = serving()
    bench.send("s", "a/1", 1)
    assert bench.replicas["r1"].log.commit_lsn == 1
    settle(bench)
    assert bench.replicas["r1"].log.commit_lsn == 2
    bench.wait(2_000)  # Once it is asked whether that was heard.
    settle(bench)
    bench.wait(60_000)
    assert bench.out == []  # And then there is silence.


def test_a_replica_that_was_restarted_hears_the_commit_point_again() -> None:
    bench = serving()
    bench.send("s", "a/1", 1)
    settle(bench)
    replica = bench.replicas["r1"]
    replica.restart()
    assert replica.log.commit_lsn < 2
    bench.tell(own.MemberDown(replica.member))
    bench.tell(own.MemberUp(replica.member))
    bench.out.clear()  # What is said at once is lost.
    settle(bench, 1_000)
    assert replica.log.commit_lsn == 2


def test_keys_never_decrease_along_the_log() -> None:
    bench = serving()
    bench.send("s", "a/1", 1)
    bench.submit("s", "a/1", 2, 3)
    bench.out.clear()  # The record reaches nobody, and is proposed again after an EpochStart.
    bench.now_ms += 10_000
    bench.serve("again", force=True)
    settle(bench)
    disk = bench.replicas["r1"].disk
    records = [disk.record(SLOT, lsn) for lsn in range(1, bench.owner.commit_lsn + 1)]
    keys = [key for record in records if record for key in record_keys(record.payload)]
    assert keys == sorted(keys)
    assert [seq for *_, seq in committed(bench)] == [1, 2, 3]


# -- pressure ----------------------------------------------------------------------------------


def test_while_history_lags_nothing_is_admitted_and_it_does_not_stay_so() -> None:
    bench = serving(limits=ServingLimits(apply_lag_lsns_max=5))
    for n in range(1, 20):
        bench.send("s", "a/1", n)
    assert bench.answers()[-1].code == Overloaded.code
    settle(bench)
    bench.apply()
    # No append goes out any more that could bring the news: the owner has to ask.
    settle(bench, 1_100)
    bench.send("s", "a/1", bench.owner.serving.sessions["s"].last_seq + 1)
    assert [a.code for a in bench.answers()] == [0]


def test_outside_of_serving_sends_are_refused_and_heads_are_not_answered() -> None:
    bench = Bench()
    bench.submit("s", "a/1", 1)
    assert [a.code for a in bench.answers()] == [SlotMoving.code]
    bench.tell(own.HeadsAsked("reader", ("s",)))
    assert told(bench, own.HeadsKnown) == []


# -- losing the slot ---------------------------------------------------------------------------


def pending_of_every_kind() -> Bench:
    """One send in flight, one waiting for its session, one being looked up in history."""
    bench = serving()
    for n in range(1, DEVICE_WINDOW + 10):
        bench.send("s", "a/1", n)
    bench.answers()
    bench.submit("s", "a/1", DEVICE_WINDOW + 10)
    bench.submit("s", "a/1", 1)
    bench.submit("unknown", "a/1", 1)
    return bench


def test_who_hears_of_a_higher_epoch_steps_down_and_leaves_nobody_waiting() -> None:
    bench = pending_of_every_kind()
    promise(bench, 9)
    assert phase(bench) is Phase.IDLE
    assert len(told(bench, own.SteppedDown)) == 1
    codes = sorted(a.code for a in bench.answers())
    assert codes == sorted([SlotMoving.code, Unknown.code, Unknown.code])
    assert bench.owner.serving.sessions == {}


def test_a_newer_view_of_somebody_else_is_believed() -> None:
    bench = serving()
    bench.tell(own.ViewSeen(bench.view._replace(owner="other")))
    assert phase(bench) is Phase.SERVING  # Of the same epoch: hearsay.
    bench.tell(own.ViewSeen(bench.view._replace(epoch=5, owner="other")))
    assert phase(bench) is Phase.IDLE


def test_a_late_refusal_of_a_former_epoch_changes_nothing() -> None:
    bench = serving()
    bench.serve("again", force=True)
    answer = Refused(SLOT, 1, 2, "a newer epoch is promised")
    bench.tell(own.ReplicaAnswered(bench.view.members[0], answer))
    assert phase(bench) is Phase.SERVING


def test_a_repeated_prepare_does_not_end_the_epoch() -> None:
    bench = Bench()
    bench.tell(own.Take("start"))
    seen: list[Any] = []
    bench.deliver(lambda *sent: bool(isinstance(sent[1], Prepare) and seen.append(sent)))
    for member, message in seen:
        bench.carry(member, message)
    bench.deliver()
    assert (len(seen), phase(bench), bench.owner.epoch) == (3, Phase.SERVING, 1)


# -- a live owner takes over from itself -------------------------------------------------------


@pytest.mark.parametrize("reaches", [0, 1, 2, 3])
def test_a_live_owner_keeps_the_seqs_that_it_gave(reaches: int) -> None:
    bench = serving(limits=ServingLimits(records_in_flight_max=2))
    bench.send("s", "a/1", 1)
    bench.answers()
    bench.submit("s", "a/1", 2)
    bench.submit("s", "b/1", 1)
    bench.submit("s", "a/1", 3)
    sent = hold(bench, Append)
    for member, message in sent[:reaches]:
        bench.replicas[member.replica].ask(message)  # Stored, and the answer is lost.
    bench.serve("again", force=True)
    bench.deliver()
    assert [(a.code, a.seq) for a in bench.answers()] == [(0, 2), (0, 3), (0, 4)]
    assert committed(bench) == [
        ("s", "a/1", 1, 1), ("s", "a/1", 2, 2), ("s", "b/1", 1, 3), ("s", "a/1", 3, 4),
    ]  # fmt: skip


def test_what_others_held_in_between_makes_the_counters_worthless() -> None:
    bench = serving()
    bench.send("s", "a/1", 1)
    bench.submit("s", "a/1", 2)
    bench.out.clear()
    bench.answers()
    bench.view = bench.view._replace(epoch=2, owner="other")
    bench.tell(own.Take("back", True))
    assert [a.code for a in bench.answers()] == [Unknown.code]
    assert bench.owner.serving.sessions == {}


def test_its_own_claim_of_an_attempt_that_it_gave_up_is_no_knowledge() -> None:
    bench = serving()
    bench.send("s", "a/1", 1)
    bench.store_answers = False
    bench.tell(own.Take("again", True))
    bench.tell(own.ViewRead(bench.view))
    claim = bench.store_asked[-1].new
    promise(bench, 2)  # Given up; and then the swap takes effect after all.
    bench.view = claim
    bench.store_asked.clear()
    bench.wait(200)
    bench.tell(own.ViewRead(bench.view))
    assert bench.owner.attempt.fresh
    assert bench.owner.serving.sessions == {}


def test_a_new_owner_learns_everything_from_the_log() -> None:
    bench = serving()
    bench.send("s", "a/1", 1, 2)
    bench.send("s", "b/1", 1)
    settle(bench)
    bench.apply()
    bench.send("s", "a/1", 3)  # Above what history has.
    bench.replace_owner("shard.2")
    bench.answers()
    bench.send("s", "a/1", 2, 3, 4)
    assert [(a.code, a.seq) for a in bench.answers()] == [(0, 2), (0, 4), (0, 5)]


# -- session states ----------------------------------------------------------------------------


def test_sends_wait_for_their_session_until_a_complete_member_answers() -> None:
    bench = serving()
    for replica in bench.replicas.values():
        replica.log.held = [[1, 0], [1, 1]]
    for state in bench.owner.members.values():
        state.complete = False
    bench.submit("s", "a/1", 1)
    bench.deliver()
    bench.wait(5_000)
    assert bench.answers() == []  # Unknown is never taken for absent.
    for state in bench.owner.members.values():
        state.complete = True
    for replica in bench.replicas.values():
        replica.log.held = [[1, 1]]
    bench.wait(1_000)
    bench.deliver()
    assert [a.seq for a in bench.answers()] == [1]


def test_a_member_that_does_not_answer_a_read_is_passed_over() -> None:
    bench = serving()
    bench.submit("s", "a/1", 1)
    asked = []
    for _ in range(3):
        ((member, _),) = hold(bench, LoadSessions)
        asked.append(member)
        bench.wait(500)
    assert len(set(asked)) == 3
    for waits_ms in (1_000, 1_000, 1_000, 2_000, 2_000, 2_000, 4_000, 4_000, 4_000, 4_000):
        # All of them are slow.
        assert len(hold(bench, LoadSessions)) == 1
        bench.wait(waits_ms - 1)
        assert hold(bench, LoadSessions) == []
        bench.wait(1)


def test_tables_that_lag_are_asked_again_and_not_believed() -> None:
    bench = serving()
    bench.send("s", "a/1", 1)
    settle(bench)
    bench.apply("r1")
    bench.replace_owner("shard.2")
    assert bench.owner._floor_lsn == 2
    bench.answers()
    bench.submit("s", "a/1", 2)
    lagging = [name for name in bench.replicas if name != "r1"]
    bench.deliver(lambda member, m: isinstance(m, LoadSessions) and member.replica == "r1")
    assert bench.answers() == []
    bench.apply(*lagging)
    bench.wait(2_000)
    bench.deliver(lambda member, m: isinstance(m, LoadSessions) and member.replica == "r1")
    assert [(a.code, a.seq) for a in bench.answers()] == [(0, 2)]


def test_a_session_is_not_forgotten_while_its_state_is_on_the_way() -> None:
    settings = OwnerSettings(idle_session_ms=1_000)
    bench = Bench(limits=ServingLimits(sessions_max=1), settings=settings)
    bench.serve()
    for session in ("a", "b", "c"):
        bench.send(session, "a/1", 1)
    settle(bench)
    bench.apply()
    bench.send("a", "a/1", 2)
    bench.replace_owner("shard.2")  # It replays 2, which no table has.
    bench.tell(own.HeadsAsked("reader", ("a",)))
    ((member, request),) = hold(bench, LoadSessions)
    settle(bench)
    bench.apply(*(name for name in bench.replicas if name != member.replica))
    bench.send("c", "a/1", 2)  # It brings the news of what is applied.
    bench.now_ms += 100_000
    bench.tell(own.Tick())
    bench.carry(member, request)  # The state without 2.
    bench.answers()
    bench.send("a", "b/1", 1)
    settle(bench, 2_000)
    assert [(a.code, a.seq) for a in bench.answers()] == [(0, 3)]


def test_a_forgotten_session_is_not_read_from_tables_that_lag_behind_it() -> None:
    settings = OwnerSettings(idle_session_ms=1_000)
    bench = Bench(limits=ServingLimits(sessions_max=1), settings=settings)
    bench.serve()
    for session in ("a", "b"):
        bench.send(session, "a/1", 1)
    settle(bench)
    bench.apply("r1")
    bench.send("b", "a/1", 2)  # It brings the news of what is applied at r1.
    bench.now_ms += 100_000
    bench.tell(own.Tick())
    assert "a" not in bench.owner.serving.sessions
    bench.tell(own.MemberDown(bench.replicas["r1"].member))
    bench.answers()
    bench.send("a", "a/1", 1)
    assert bench.answers() == []  # Unknown is never taken for absent.
    bench.apply()
    bench.wait(3_000)
    bench.deliver()
    assert [(a.code, a.seq) for a in bench.answers()] == [(0, 1)]


def test_forgotten_sessions_are_read_again() -> None:
    settings = OwnerSettings(idle_session_ms=1_000)
    bench = Bench(limits=ServingLimits(sessions_max=1), settings=settings)
    bench.serve()
    for session in ("a", "b"):
        bench.send(session, "a/1", 1)
    settle(bench)
    bench.apply()
    bench.send("b", "a/1", 2)
    settle(bench)
    for _ in range(20):
        bench.now_ms = max(bench.now_ms, bench.owner.deadline_ms() or bench.now_ms)
        bench.tell(own.Tick())
    assert "a" not in bench.owner.serving.sessions
    bench.answers()
    bench.send("a", "a/1", 1, 2)
    settle(bench)
    assert [(a.code, a.seq) for a in bench.answers()] == [(0, 1), (0, 2)]


def test_too_many_sessions_are_a_reason_to_be_called() -> None:
    # Under steady load every other deadline is put off again and again.
    bench = serving(limits=ServingLimits(sessions_max=1))
    for session in ("a", "b", "c"):
        bench.send(session, "a/1", 1)
    settle(bench)
    due = bench.owner.deadline_ms()
    assert due is not None
    bench.wait(60_000)
    assert bench.owner.deadline_ms() is not None


def test_a_deadline_of_the_past_is_no_reason_to_be_called_for_ever() -> None:
    bench = serving()
    bench.submit("unknown", "a/1", 1)
    bench.out.clear()
    bench.store_answers = False
    bench.tell(own.Take("again", True))
    bench.wait(4_000)  # Raises when the owner asks to be called without end.
    assert phase(bench) is Phase.READING


def test_session_states_that_arrive_out_of_time_are_asked_for_again() -> None:
    bench = serving()
    bench.submit("s", "a/1", 1)
    ((member, request),) = hold(bench, LoadSessions)
    bench.store_answers = False
    bench.tell(own.Take("again", True))
    bench.carry(member, request)
    assert waiting(bench, Append) == []
    bench.store_answers = True
    bench.answer_store()
    bench.deliver()
    bench.wait(1_000)
    bench.deliver()
    assert [a.seq for a in bench.answers()] == [1]


# -- heads -------------------------------------------------------------------------------------


def heads(bench: Bench) -> list[tuple[Any, list[tuple[str, int]]]]:
    return [(effect.token, effect.heads) for effect in told(bench, own.HeadsKnown)]


def test_heads_are_committed_seqs() -> None:
    bench = serving()
    bench.send("s", "a/1", 1, 2)
    bench.submit("s", "a/1", 3)
    bench.tell(own.HeadsAsked("reader", ("s",)))
    assert heads(bench) == [("reader", [("s", 2)])]


def test_heads_of_sessions_that_are_not_loaded_come_later() -> None:
    bench = serving()
    bench.send("known", "a/1", 1)
    bench.tell(own.HeadsAsked("one", ("known", "other")))
    bench.tell(own.HeadsAsked("two", ("other",)))
    assert heads(bench) == [("one", [("known", 1)])]
    assert len(waiting(bench, LoadSessions)) == 1  # Asked for once.
    bench.deliver()
    assert heads(bench)[1:] == [("one", [("other", 0)]), ("two", [("other", 0)])]


def test_heads_that_wait_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(own, "HEADS_WAITING_MAX", 3)
    bench = serving()
    for number in range(9):
        bench.tell(own.HeadsAsked(number, ("x", "y")))
    bench.deliver()
    assert sum(len(known) for _, known in heads(bench)) == 3
    bench.tell(own.HeadsAsked("later", ("x", "y")))
    assert heads(bench)[-1] == ("later", [("x", 0), ("y", 0)])


# -- very old resends --------------------------------------------------------------------------


def long_ago(bench: Bench, count: int = DEVICE_WINDOW + 70) -> Bench:
    for n in range(1, count + 1):
        bench.send("s", "a/1", n)
    settle(bench)
    bench.answers()
    return bench


def test_a_resend_from_before_the_window_is_found_in_history() -> None:
    bench = long_ago(serving())
    bench.apply()
    bench.send("s", "a/1", 5)
    assert [(a.code, a.seq) for a in bench.answers()] == [(0, 5)]


def test_a_resend_that_history_does_not_have_yet_waits_for_it() -> None:
    bench = long_ago(serving())
    bench.send("s", "a/1", 5)
    bench.wait(2_000)
    bench.deliver()
    # The tables do not have the key. That does not mean that it is free.
    assert bench.answers() == []
    assert bench.alarms() == []
    bench.apply()
    bench.wait(2_000)
    bench.deliver()
    assert [(a.code, a.seq) for a in bench.answers()] == [(0, 5)]


def test_another_body_under_a_very_old_key_is_a_conflict_and_a_void_is_not() -> None:
    bench = long_ago(serving())
    bench.apply()
    bench.submit("s", "a/1", 5, body=b"other")
    bench.submit("s", "a/1", 6, body=b"", kind=EventKind.VOID)
    bench.deliver()
    first, second = bench.answers()
    assert (first.code, first.expected_n) == (KeyConflict.code, DEVICE_WINDOW + 71)
    assert (second.code, second.seq) == (0, 6)


def test_a_used_key_that_is_nowhere_is_an_alarm_and_unknown() -> None:
    bench = long_ago(serving())
    bench.apply()
    bench.submit("s", "a/1", 5)
    ((member, request),) = hold(bench, FindKey)
    answer = KeyFound(SLOT, request.epoch, request.request, True, 0, 0, 0)
    bench.tell(own.ReplicaAnswered(member, answer))
    assert [a.code for a in bench.answers()] == [Unknown.code]
    assert bench.alarms()


def test_lookups_of_old_keys_are_bounded() -> None:
    bench = long_ago(serving())
    for _ in range(own.KEY_LOOKUPS_MAX + 50):
        bench.submit("s", "a/1", 5)
    assert len(waiting(bench, FindKey)) == own.KEY_LOOKUPS_MAX
    assert [a.code for a in bench.answers()] == [Overloaded.code] * 50


# -- spares that are not needed any more -------------------------------------------------------


def test_only_when_all_three_are_complete_the_others_delete_their_data() -> None:
    bench = serving(4, settings=OwnerSettings(copy_records_max=0))
    bench.send("s", "a/1", 1, 2)
    settle(bench)
    bench.apply()
    gone = bench.replicas["r1"]
    bench.tell(own.MemberDown(gone.member))
    bench.tell(own.Take("r1 is lost", True))
    bench.deliver()
    bench.wait(500)
    bench.deliver()
    assert phase(bench) is Phase.SERVING
    bench.tell(own.MemberUp(gone.member))
    assert waiting(bench, Drop) == []  # r4 has a hole: r1's copy still counts.
    spare = bench.replicas["r4"]
    assert not spare.log.complete
    spare.log.held = [[1, spare.log.last_lsn]]
    bench.wait(1_000)
    bench.deliver()
    assert gone.log.epochs == ()
    assert gone.log.promised == bench.owner.epoch


# -- settings and its own check ----------------------------------------------------------------


@pytest.mark.parametrize(
    "settings",
    [OwnerSettings(retry_ms_min=9, retry_ms_max=8), OwnerSettings(replace_after_ms=500)],
)
def test_settings_that_contradict_each_other_are_refused(settings: OwnerSettings) -> None:
    OwnerSettings().validate()
    with pytest.raises(ValueError, match="above"):
        settings.validate()


def test_the_check_notices_a_commit_point_above_a_members_disk() -> None:
    bench = serving()
    bench.owner.validate()
    bench.owner.members[bench.view.members[0]].durable_lsn = 0
    with pytest.raises(InvariantBroken, match="I1"):
        bench.owner.validate()
