"""What a rebuilt view may name. The rules are checked against a world in which everybody knows what
was committed: takeovers that end anywhere, lost disks, lost stores, and repairs one after the
other."""

from __future__ import annotations

import random
from collections import Counter
from itertools import groupby

import pytest

from im_actors.cli.repair_offline import Copy, Disk, SlotPlan, make_plan
from im_actors.core.model import COPIES, Member, View, ViewState
from im_actors.core.replica import SlotLog

ABSENT = "away"


def member(name: str, disk: str = "d") -> Member:
    return Member(name, disk)


def log_of(
    epochs: str, promised: int, view: View | None = None, commit: int = 0, from_lsn: int = 1
) -> SlotLog:
    """``epochs``: the epoch of each record, one digit each."""
    found: list[tuple[int, int]] = []
    for lsn, digit in enumerate(epochs, start=1):
        if not found or found[-1][0] != int(digit):
            found.append((int(digit), lsn))
    held = [[from_lsn, len(epochs)]]
    return SlotLog(promised, "o", view, tuple(found), held, commit, commit)


def disk(name: str, log: SlotLog | None, promised: int = 0) -> Disk:
    view = {0: log.view} if log is not None and log.view is not None else {}
    logs = {0: log} if log is not None else {}
    return Disk(member(name), logs, {0: log.promised if log else promised}, view)


def claim(epoch: int, *names: str) -> View:
    return View(0, epoch, ViewState.RECOVERING, "o", tuple(map(member, names)))


def plan(disks: list[Disk], absent: str = "", view: View | None = None) -> SlotPlan:
    views = {0: view} if view is not None else {}
    away = dict.fromkeys(absent.split(), ABSENT)
    return make_plan(1, disks, away, views, "", 0, random.Random(1)).slots[0]


def named(found: SlotPlan) -> list[str]:
    assert found.view is not None
    return sorted(m.replica for m in found.view.members)


def test_the_copies_of_the_newest_epoch_are_named_and_the_epoch_is_above_all() -> None:
    disks = [
        disk("a", log_of("1122", 2)),
        disk("b", log_of("112", 2)),
        disk("c", log_of("11111", 1)),
        disk("d", None, promised=7),
    ]
    found = plan(disks)
    assert named(found) == ["a", "b"]
    assert found.view is not None
    assert found.view.epoch > 7
    assert found.may_lose == ""
    assert found.last_lsn == 4


def test_what_a_spare_got_of_a_takeover_that_did_not_end_does_not_count() -> None:
    """It has records of the newest epoch and was no member of it: some of them it lacks."""
    old = claim(2, "a", "b", "c")
    disks = [disk("a", log_of("1111", 2, old)), disk("s", log_of("11", 2, old))]
    assert named(plan(disks)) == ["a"]


def test_too_few_disks_are_refused_unless_it_is_certain() -> None:
    copy = log_of("112", 2)
    assert plan([disk("a", copy), disk("b", copy)], "c d").may_lose == ""
    assert "c, d, e" in plan([disk("a", copy), disk("b", copy)], "c d e").may_lose
    served = log_of("112", 2, commit=3)
    three = [disk(name, served) for name in "abf"]
    assert plan(three, "c d e").may_lose == ""
    # The epoch of which nothing is known to be committed may have come to nothing.
    assert plan([disk(name, copy) for name in "abf"], "c d e").may_lose


def test_a_commit_point_that_no_log_here_reaches_is_told() -> None:
    disks = [disk("a", log_of("112", 2)), disk("b", log_of("11111", 1, commit=5))]
    assert "lsn 4 to 5" in plan(disks).may_lose


def test_a_disk_that_a_view_names_and_that_is_another_one_now_is_lost() -> None:
    gone = View(0, 3, ViewState.RECOVERING, "o", tuple(member(n, "old") for n in "bcd"))
    disks = [disk("a", log_of("11", 3, gone)), *(disk(n, None) for n in "bcd")]
    assert "b, c, d" in plan(disks).may_lose


def test_a_view_that_is_sound_is_left_alone() -> None:
    disks = [disk("a", log_of("112", 2)), disk("b", log_of("112", 2)), disk("c", None)]
    found = plan(disks, view=claim(2, "a", "b", "x"))
    assert found.view is None
    assert "2 of 3 copies" in found.why
    assert plan([disk("a", None)], view=claim(0, "a", "b", "c")).view is None


def test_an_old_view_and_one_whose_members_are_lost_are_not() -> None:
    disks = [disk("a", log_of("112", 2)), disk("b", log_of("112", 2))]
    old = plan(disks, view=claim(1, "a", "b", "x"))
    assert (named(old), old.may_lose) == (["a", "b"], "")
    lost = plan(disks, "x y z", view=claim(9, "x", "y", "z"))
    assert lost.view is not None
    assert lost.view.epoch > 9
    assert lost.may_lose


def test_records_that_nobody_has_are_told() -> None:
    late = log_of("1123", 3, from_lsn=4)
    assert "lsn 1 to 3" in plan([disk("a", late)]).trouble
    assert "lsn 3 to 3" in plan([disk("a", late), disk("b", log_of("11", 1))]).trouble
    assert plan([disk("a", late), disk("b", log_of("112", 2))]).trouble == ""


def test_a_slot_of_which_there_is_nothing() -> None:
    found = plan([disk("a", None, promised=4), disk("b", None)], "c")
    assert "all of it" in found.may_lose
    assert found.view is not None
    assert found.view.epoch > 4


# -- the world -------------------------------------------------------------------------------------

Entry = tuple[int, int]
"""(epoch, content)."""


class Replica:
    """One disk."""

    def __init__(self) -> None:
        self.log: list[Entry] = []
        self.promised = 0
        self.view: View | None = None
        self.commit = 0

    def end(self) -> tuple[int, int]:
        return (self.log[-1][0] if self.log else 0, len(self.log))

    def disk(self, name: str) -> Disk:
        found = Disk(member(name), promises={0: self.promised})
        if self.view is not None:
            found.views[0] = self.view
        if self.log:
            lsns = enumerate(self.log, start=1)
            firsts = groupby(lsns, key=lambda entry: entry[1][0])
            epochs = tuple((epoch, next(run)[0]) for epoch, run in firsts)
            held = [[1, len(self.log)]]
            found.logs[0] = SlotLog(
                self.promised, "o", self.view, epochs, held, self.commit, self.commit
            )
        return found


class World:
    """One slot. ``committed`` is what may never be lost."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.replicas = {name: Replica() for name in "abcdefg"[: self.rng.randint(3, 7)]}
        self.members = sorted(self.replicas)[:COPIES]
        self.serving: list[str] = []
        self.serving_epoch = 0
        self.owner_log: list[Entry] = []
        self.epoch = 0
        self.now_ms = 0
        self.content = 0
        self.committed: list[Entry] = []

    def chance(self, share: float) -> bool:
        return self.rng.random() < share

    def some(self, names: list[str], share: float) -> list[str]:
        found = [name for name in names if self.chance(share)]
        self.rng.shuffle(found)
        return found

    def step(self) -> None:
        if self.chance(0.5):
            self.take_over()
        else:
            self.write()

    def write(self) -> None:
        """The owner goes on, perhaps one that does not know that it is deposed."""
        if not self.serving:
            return
        self.content += 1
        self.owner_log.append((self.serving_epoch, self.content))
        for name in self.some(self.serving, 0.8):
            replica = self.replicas[name]
            if replica.promised == self.serving_epoch:
                # With what it has not got of earlier ones, all of it or a part.
                upto = self.rng.randint(len(replica.log), len(self.owner_log))
                replica.log = self.owner_log[:upto]
        self.commit()

    def commit(self) -> None:
        answers = [
            len(self.replicas[n].log)
            for n in self.serving
            if self.replicas[n].promised == self.serving_epoch
        ]
        if len(answers) == COPIES and min(answers) > len(self.committed):
            self.committed = self.owner_log[: min(answers)]
        for name in self.some(self.serving, 0.4):
            replica = self.replicas[name]
            if replica.promised == self.serving_epoch:
                replica.commit = max(replica.commit, min(len(self.committed), len(replica.log)))

    def take_over(self) -> None:
        """One attempt, which may end after any step."""
        self.epoch += 1
        epoch = self.epoch
        seen = claim(epoch, *self.members)
        sealed = self.some(sorted(self.replicas), self.rng.choice((0.4, 0.8, 1.0)))
        for name in sealed:
            replica = self.replicas[name]
            assert replica.promised < epoch
            replica.promised, replica.view = epoch, seen
        # Some answer too late to be asked further.
        usable = [name for name in sealed if name in self.members and self.chance(0.8)]
        spares = [name for name in sealed if name not in self.members]
        chosen = (usable + spares)[: max(COPIES, len(usable))]
        if not usable or len(chosen) < COPIES:
            return
        best = max((self.replicas[name] for name in usable), key=Replica.end)
        kept = list(best.log)
        for name in chosen:
            if not self.prepared(self.replicas[name], kept):
                return
        self.content += 1
        opening = (epoch, self.content)
        for name in chosen:
            if self.chance(0.1):
                return
            self.replicas[name].log.append(opening)
        if self.chance(0.1):
            return
        self.members = chosen
        self.serving, self.serving_epoch = chosen, epoch
        self.owner_log = [*kept, opening]
        assert self.owner_log[: len(self.committed)] == self.committed, "the world is wrong"
        self.committed = list(self.owner_log)
        self.commit()

    def prepared(self, replica: Replica, kept: list[Entry]) -> bool:
        """Cut and copy, record by record; false when it ends on the way."""
        same = 0
        while same < min(len(kept), len(replica.log)) and kept[same] == replica.log[same]:
            same += 1
        assert same >= replica.commit
        del replica.log[same:]
        for entry in kept[same:]:
            if self.chance(0.05):
                return False
            replica.log.append(entry)
        return not self.chance(0.05)

    def repair(self) -> str:
        """The store is lost, and so are some disks, for now; what became of it."""
        names = sorted(self.replicas)
        here = self.some(names, self.rng.choice((0.4, 0.7, 1.0))) or names
        absent = {name: ABSENT for name in names if name not in here}
        disks = [self.replicas[name].disk(name) for name in here]
        self.now_ms += 10_000
        found = make_plan(1, disks, absent, {}, "lost", self.now_ms, self.rng).slots[0]
        if not found.copies:
            return "nothing"
        if found.may_lose:
            return "refused" if absent else "refused, with all disks"
        for name in named(found):
            log = self.replicas[name].log
            assert log[: len(self.committed)] == self.committed, (name, log, self.committed)
        assert found.view is not None
        assert found.view.epoch > max(replica.promised for replica in self.replicas.values())
        self.members = named(found)
        self.epoch = found.view.epoch
        self.serving = []
        return f"certain, {'with some' if len(absent) < COPIES else 'without three'}"


def outcomes_of(seeds: range) -> Counter[str]:
    outcomes: Counter[str] = Counter()
    for seed in seeds:
        world = World(seed)
        try:
            for _ in range(world.rng.randint(1, 4)):
                for _ in range(world.rng.randint(1, 12)):
                    world.step()
                outcomes[world.repair()] += 1
        except AssertionError as error:
            raise AssertionError(f"seed {seed}: {error}") from error
    return outcomes


def test_no_repair_that_is_certain_loses_what_was_committed() -> None:
    """200,000 seeds held."""
    outcomes = outcomes_of(range(400))
    # It is not only by refusing.
    assert outcomes["certain, with some"] > 300
    assert outcomes["certain, without three"] > 1
    assert outcomes["refused"] > 70
    assert outcomes["refused, with all disks"] == 0


@pytest.mark.parametrize(
    ("rule", "without", "seed"),
    [
        ("counts", property(lambda _: True), 16),
        ("end", property(lambda copy: (copy.log.last_lsn, copy.log.last_epoch)), 92),
    ],
)
def test_without_a_rule_something_is_lost(
    monkeypatch: pytest.MonkeyPatch, rule: str, without: object, seed: int
) -> None:
    outcomes_of(range(seed, seed + 1))
    monkeypatch.setattr(Copy, rule, without)
    with pytest.raises(AssertionError, match=f"seed {seed}"):
        outcomes_of(range(seed, seed + 1))


@pytest.mark.parametrize("seed", [14472, 27403])
def test_a_second_loss_after_a_repair(seed: int) -> None:
    """The newest view may name fewer than three members then, and none of them is here."""
    assert outcomes_of(range(seed, seed + 1))["refused"]
