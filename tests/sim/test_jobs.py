"""What the simulation holds batch messages against sees whom they did not reach."""

from __future__ import annotations

from random import Random
from typing import Any

import msgpack
import pytest

from im_actors.core.model import Event, EventKind, make_key
from tests.sim.__main__ import replay_command
from tests.sim.jobs import SENDER, JobModel, Order
from tests.sim.runs import run_plan
from tests.sim.world import Plan

KEY = make_key(1_700_000_000_000, 0, 0)
USERS = ["r0", "r1", "r2"]
SEEDS = (35, 96)
RARE = ("batch_not_sent", "batch_fenced", "batch_relayed", "list_answered")


class Batch:
    """A batch of two chunks, and what its recipients have."""

    def __init__(self) -> None:
        self.order = Order(0, USERS, Random(1))
        self.order.chunks, self.order.total, self.order.dry = [["r0", "r1"], ["r2"]], 0, False
        self.told: dict[tuple[str, str], dict[int, Event]] = {}
        self.model = JobModel(self.order, self.told)
        self.seq = 0

    def job(self, state: int, chunks: int, count: int) -> tuple[str, int, bytes]:
        order = self.order
        row = [1, state, SENDER, order.channel, order.notice, False, 0, chunks, count, 7]
        return ("b", 0, msgpack.packb(row))

    def changed(self, what: str, args: list[Any], *facts: Any) -> str | None:
        return self._take(EventKind.BATCH, [what, args[:0], list(facts)], [what, args])

    def progress(self, recall: bool, done: int, count: int, row: list[Any], *facts: Any) -> Any:
        said = ("p", 0, msgpack.packb([1, *row]))
        return self._take(EventKind.NOTE, ["progress", [recall, done, count], [said, *facts]], [])

    def _take(self, kind: EventKind, body: list[Any], asked: list[Any]) -> str | None:
        self.seq += 1
        device = f"{SENDER}/desk"
        packed = msgpack.packb(body)
        event = Event(self.order.session, self.seq, KEY, kind, device, self.seq, packed)
        return self.model.take_in(event, msgpack.packb(asked))

    def tell(self, user: str, n: int = 1, body: bytes | None = None) -> str | None:
        session, device = self.order.notice_of(user), self.order.device
        kind = EventKind.MESSAGE if n == 1 else EventKind.RECALL
        event = Event(session, n, KEY, kind, device, n, self.order.body if body is None else body)
        wrong = self.model.told_one(user, event)
        self.told.setdefault((session, device), {})[n] = event
        return wrong

    def started(self) -> Batch:
        order = self.order
        args = [order.content, order.channel, order.notice, 0, False]
        assert self.changed("create", args, self.job(0, 0, 0)) is None
        assert self.changed("recipients", [0, order.chunks[0]], self.job(0, 1, 2)) is None
        assert self.changed("recipients", [1, order.chunks[1]], self.job(0, 2, 3)) is None
        assert self.changed("start", [], self.job(1, 2, 3)) is None
        return self


def failed(chunk: int, *positions: int) -> tuple[str, int, bytes]:
    flat = [number for position in positions for number in (position, 1)]
    return (f"f/{chunk:08x}", 0, msgpack.packb([1, flat]))


def test_everybody_has_it_once() -> None:
    batch = Batch().started()
    assert [batch.tell(user) for user in USERS] == [None] * 3
    done = batch.job(3, 2, 3)
    assert batch.progress(False, 0, 2, [2, 3, 0, 0, True, 0, 0, 0], done) is None
    assert batch.model.standing.state == "done"
    assert batch.model.wrong_end() is None


def test_who_was_not_told_is_said_so() -> None:
    batch = Batch().started()
    assert batch.tell("r0") is None
    assert batch.changed("cancel", [], batch.job(4, 2, 3)) is None
    ended = batch.job(5, 2, 3)
    row = [1, 1, 0, 1, True, 0, 0, 0]
    assert batch.progress(False, 0, 1, row, failed(0, 1), ended) is None
    assert batch.model.wrong_end() is None
    assert batch.tell("r1") is not None
    assert batch.model.wrong_end() is not None


def test_progress_before_all_have_it() -> None:
    batch = Batch().started()
    batch.tell("r0")
    assert batch.progress(False, 0, 1, [1, 2, 0, 0, False, 0, 0, 0]) is not None


@pytest.mark.parametrize(
    ("done", "count", "row"),
    [(1, 1, [2, 1, 0, 0, True, 0, 0, 0]), (0, 1, [2, 2, 0, 0, False, 0, 0, 0])],
)
def test_progress_that_does_not_follow(done: int, count: int, row: list[Any]) -> None:
    batch = Batch().started()
    for user in USERS:
        batch.tell(user)
    assert batch.progress(False, done, count, row) is not None


def test_who_is_told_wrongly() -> None:
    batch = Batch().started()
    assert batch.tell("r9") is not None
    assert batch.tell("r0", body=b"something else") is not None
    assert Batch().tell("r0") is not None


def test_what_is_taken_back() -> None:
    batch = Batch().started()
    for user in USERS:
        batch.tell(user)
    batch.progress(False, 0, 2, [2, 3, 0, 0, True, 0, 0, 0], batch.job(3, 2, 3))
    assert batch.changed("recall", [], batch.job(6, 2, 3)) is None
    recall = msgpack.packb(["recall", [1], []])
    assert [batch.tell(user, 2, recall) for user in USERS[:2]] == [None] * 2
    row = [2, 3, 0, 0, True, 1, 2, 0]
    assert batch.progress(True, 0, 1, row) is None
    assert batch.progress(True, 1, 1, [2, 3, 0, 0, True, 2, 3, 0], batch.job(7, 2, 3)) is not None
    assert batch.tell("r2", 2, msgpack.packb(["recall", [4], []])) is not None


def test_what_must_be_refused() -> None:
    batch = Batch().started()
    seq = len(batch.model.standings) - 1
    for user, what, args, refused in [
        ("somebody", "cancel", [], True),
        ("aide", "start", [], True),
        ("aide", "pause", [], False),
        (SENDER, "create", [], True),
        (SENDER, "recipients", [2, ["r7"]], True),
        (SENDER, "recall", [], False),
    ]:
        body = msgpack.packb([what, args])
        assert batch.model.refuses(seq, user, EventKind.BATCH, body, 0) is refused, what


def test_runs_meet_what_only_users_meet() -> None:
    met: set[str] = set()
    for seed in SEEDS:
        plan = Plan(seed, operations=300)
        outcome = run_plan(plan)
        assert outcome.problem is None, f"replay: {replay_command(plan)}\n{outcome.problem}"
        met |= outcome.met.keys()
    assert met >= set(RARE), f"seeds {SEEDS} met only {sorted(met)}"
