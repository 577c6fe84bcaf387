"""The list in memory against a dumb model, and page by page while everything changes."""

from __future__ import annotations

from random import Random

import msgpack
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from im_actors.errors import BadRequest
from im_actors.mailbox.cursor import Query, read_cursor, write_cursor
from im_actors.mailbox.rows import END, TOP, Copy, Entry, Flag, Head, Listing, entry_place
from im_actors.mailbox.view import EARLY_MAX, MailboxView, Needs, Page, Totals
from tests.mailbox.fakes import FakeHeads, PlainRows, Truth

LABELS = ("", "", "", "shops")
seeds = settings(
    max_examples=60,
    phases=[Phase.explicit, Phase.reuse, Phase.generate],  # a seed does not shrink
)


class World:
    """A mailbox that changes at random and a view that is told late, twice and out of order."""

    def __init__(self, rng: Random, groups: bool = True) -> None:
        self.rng = rng
        self.truth = Truth()
        self.heads = FakeHeads()
        self.names = [f"direct:a/{n}" for n in range(rng.randint(1, 30))]
        self.groups = [f"group:{n}" for n in range(rng.randint(1, 6))] if groups else []
        self.key = 1_000
        for _ in range(rng.randint(0, 60)):
            self.change()
        self.view = self.fresh()
        self.untold: list[int] = []

    def fresh(self) -> MailboxView:
        page = self.truth.page(TOP, self.rng.randint(1, 10))
        return MailboxView(page, PlainRows(), self.heads)

    def change(self) -> None:
        """One event, or one message in a group."""
        rng = self.rng
        self.key += rng.randint(1, 3)
        if self.groups and rng.random() < 0.2:
            self.heads.set(rng.choice(self.groups), self.key, rng.choice((0, 0, 1, 5)))
        elif rng.random() < 0.08:
            self.truth.forget(rng.choice(self.names + self.groups))
        else:
            sessions = rng.sample(self.names, min(len(self.names), rng.choice((1, 1, 1, 3))))
            if self.groups and rng.random() < 0.2:
                sessions = [rng.choice(self.groups)]
            self.truth.write(*(self.row(session) for session in sessions))

    def row(self, session: str) -> tuple[str, int, int, int, str]:
        rng = self.rng
        flags = Flag.LIVE if session.startswith("group:") else 0
        known = self.truth.rows().get(session)
        rank = known.rank % (1 << 62) if known and rng.random() < 0.3 else self.key
        if rng.random() < 0.1:
            rank = 0
        elif rng.random() < 0.2:
            rank, flags = rank + (1 << 62), flags | Flag.PINNED
        flags |= Flag.MUTED if rng.random() < 0.2 else 0
        return session, rank, rng.choice((0, 0, 1, 2, 9)), flags, rng.choice(LABELS)

    def tell(self, seq: int) -> None:
        self.view.feed(seq, self.truth.events[seq - 1])

    def tell_all(self) -> None:
        for seq in range(self.view.version + 1, self.truth.version + 1):
            self.tell(seq)
        assert self.view.version == self.truth.version

    def tell_some(self) -> None:
        """A few of the newest changes, some of them again, in any order."""
        newest = range(max(1, self.truth.version - 6), self.truth.version + 1)
        for seq in self.rng.sample(newest, self.rng.randint(0, len(newest))):
            self.tell(seq)

    def load(self, needs: Needs) -> None:
        """From a tier that is at some version which may be used."""
        low = self.view.base
        version = self.rng.randint(low, self.truth.version)
        while self.view.version < version:
            self.tell(self.view.version + 1)
        limit = self.rng.randint(1, 12)
        if needs.listing is Listing.ALL:
            copy = self.truth.page(needs.after, limit, version)
        elif needs.listing is Listing.LIVE:
            copy = self.truth.live(version)
        else:
            unread = [row for row in self.truth.static(version) if row.unread]
            copy = Copy(version, unread, {Listing.UNREAD: END})
        assert self.view.merge(copy, needs.after)

    def page(self, query: Query) -> Page:
        self.view.refresh()
        while isinstance(page := self.view.page(query), Needs):
            self.load(page)
            self.view.refresh()
        return page

    def pages(self, label: str | None, unread_only: bool) -> list[tuple[str, int]]:
        """(session, unread) of a whole list."""
        query = Query(label, unread_only, TOP, self.rng.randint(1, 9))
        found = []
        while True:
            page = self.page(query)
            found += [(row[0], row[3]) for row in msgpack.unpackb(page.encoded)]
            if not page.cursor:
                return found
            assert len(page.entries) == query.limit
            query = read_cursor(page.cursor, query)

    def totals(self) -> Totals:
        self.view.refresh()
        while isinstance(totals := self.view.totals(), Needs):
            self.load(totals)
            self.view.refresh()
        return totals


@seeds
@given(seed=st.integers(0, 2**32))
def test_the_view_says_what_the_model_says(seed: int) -> None:
    world = World(Random(seed))
    for _ in range(12):
        for _ in range(world.rng.randint(0, 6)):
            world.change()
        world.tell_some()
        if world.rng.random() < 0.15:
            world.view.trim(world.rng.randint(0, 8))
        if world.rng.random() < 0.1:
            world.view = world.fresh()
        world.tell_all()
        label, unread_only = world.rng.choice((*LABELS, None)), world.rng.random() < 0.5
        expected = world.truth.shown(world.heads, label, unread_only)
        assert world.pages(label, unread_only) == expected
        if world.rng.random() < 0.5:
            everywhere = [
                unread
                for label in set(LABELS)
                for _, unread in world.truth.shown(world.heads, label, True)
            ]
            totals = world.totals()
            assert (totals.unread, totals.conversations) == (sum(everywhere), len(everywhere))
        recount = world.view.recount()
        assert not recount.drifted, recount


@seeds
@given(seed=st.integers(0, 2**32))
def test_pages_repeat_nothing_and_skip_nothing_that_did_not_move(seed: int) -> None:
    world = World(Random(seed))
    world.tell_all()
    before = world.truth.listed(world.heads, "", False)
    places = dict(enumerate(before))
    moved: set[str] = set()
    query = Query(limit=world.rng.randint(1, 5))
    seen: list[str] = []
    while True:
        page = world.page(query)
        seen += [entry.session for entry in page.entries]
        if not page.cursor:
            break
        query = read_cursor(page.cursor, query)
        old, heads = world.truth.rows(), dict(world.heads.heads)
        for _ in range(world.rng.randint(0, 3)):
            world.change()
        rows = world.truth.rows()
        moved |= {name for name in rows if rows[name] != old.get(name)}
        moved |= {name for name in world.heads.heads if world.heads.heads[name] != heads.get(name)}
        world.tell_all()
    still = [name for name in places.values() if name not in moved]
    assert [name for name in seen if name not in moved] == still


@seeds
@given(seed=st.integers(0, 2**32))
def test_a_delta_applied_is_as_good_as_reading_anew(seed: int) -> None:
    world = World(Random(seed))
    world.tell_all()
    world.pages("", False)
    client = {row.session: row for row in world.truth.rows().values()}
    version = world.truth.version
    for _ in range(8):
        for _ in range(world.rng.randint(0, 6)):
            world.change()
        world.tell_some()
        if world.rng.random() < 0.5:
            world.tell_all()
        limit = world.rng.randint(1, 5)
        while True:
            delta = world.view.delta(version, limit)
            assert delta is not None
            assert delta.version >= version
            assert delta.version <= world.view.version
            for row in delta.entries:
                if row.seq > client.get(row.session, row._replace(seq=0)).seq:
                    client[row.session] = row
            version = delta.version
            if not delta.more:
                break
        assert version == world.view.version
        expected = world.truth.rows(version)
        for session, row in expected.items():
            assert client[session] == row or client[session].seq > version
    world.tell_all()
    delta = world.view.delta(version, 1_000)
    assert delta is not None
    client.update((row.session, row) for row in delta.entries)
    assert client == world.truth.rows()


def view_of(truth: Truth, heads: FakeHeads | None = None) -> MailboxView:
    return MailboxView(truth.everything(), PlainRows(), heads or FakeHeads())


def direct(n: int, rank: int, unread: int = 0, flags: int = 0) -> tuple[str, int, int, int, str]:
    return f"direct:a/{n}", rank, unread, flags, ""


def test_a_delta_from_before_the_copy_says_reload() -> None:
    truth = Truth()
    for n in range(5):
        truth.write(direct(n, n + 1))
    view = view_of(truth)
    assert view.delta(4, 10) is None
    delta = view.delta(5, 10)
    assert delta is not None
    assert (delta.version, delta.entries, delta.more) == (5, [], False)


def test_a_delta_does_not_part_the_rows_of_one_event() -> None:
    truth = Truth()
    view = view_of(truth)
    truth.write(*(direct(n, 10 + n) for n in range(5)))
    truth.write(direct(7, 20))
    for seq in (1, 2):
        view.feed(seq, truth.events[seq - 1])
    delta = view.delta(0, 2)
    assert delta is not None
    assert (len(delta.entries), delta.version, delta.more) == (5, 1, True)


def test_a_copy_from_before_what_was_kept_is_refused() -> None:
    truth = Truth()
    for n in range(30):
        truth.write(direct(n, n + 1))
    view = MailboxView(truth.page(TOP, 5), PlainRows(), FakeHeads())
    after = view.complete[Listing.ALL]
    assert not view.merge(truth.page(after, 5, version=29), after)
    assert len(view) == 5
    truth.write(direct(3, 50))
    assert not view.merge(truth.page(after, 5), after), "row 3 is in neither of the two"
    view.feed(31, truth.events[30])
    assert view.merge(truth.page(after, 5), after)
    gap = entry_place(truth.static()[20])
    assert not view.merge(truth.page(gap, 5), gap), "the rows between are missing"


def test_trimming_forgets_what_came_early_and_asks_for_it_again() -> None:
    truth = Truth()
    for n in range(20):
        truth.write(direct(n, n + 1, unread=n % 2))
    view = view_of(truth)
    for n in range(3):
        truth.write(direct(n, 100 + n))
    view.feed(23, truth.events[22])
    assert view.lacks() == 20
    view.trim(4)
    assert (view.base, view.version, view.lacks()) == (20, 20, 20)
    assert len(view) == 4
    for seq in (21, 22):
        view.feed(seq, truth.events[seq - 1])
    assert view.lacks() == 22
    view.feed(23, truth.events[22])
    assert view.lacks() == -1


def test_trimming_keeps_what_is_unread_when_that_is_complete() -> None:
    truth = Truth()
    for n in range(20):
        truth.write(direct(n, n + 1, unread=n % 2))
    view = view_of(truth)
    view.complete[Listing.UNREAD] = END
    view.trim(4)
    assert view.totals() == Totals(10, 0, 10)
    page = view.page(Query(unread_only=True, limit=50))
    assert isinstance(page, Page)
    assert [entry.session for entry in page.entries] == truth.listed(FakeHeads(), "", True)
    assert view.page(Query(limit=5)) == Needs(Listing.ALL, view.complete[Listing.ALL])


def test_what_comes_early_is_remembered_within_a_bound() -> None:
    truth = Truth()
    view = view_of(truth)
    for n in range(EARLY_MAX + 5):
        truth.write(direct(n % 7, 10 + n))
    for seq in range(2, truth.version + 1):
        view.feed(seq, truth.events[seq - 1])
    assert (view.version, view.heard) == (0, EARLY_MAX + 5)
    view.feed(1, truth.events[0])
    assert view.version == EARLY_MAX + 1
    for seq in range(view.version + 1, truth.version + 1):
        view.feed(seq, truth.events[seq - 1])
    assert view.version == truth.version


def test_reaching_back_lets_older_copies_fit_in() -> None:
    truth = Truth()
    for n in range(20):
        truth.write(direct(n, n + 1))
    truth.write(direct(3, 50))
    truth.forget("direct:a/4")
    view = MailboxView(truth.page(TOP, 5), PlainRows(), FakeHeads())
    after = view.complete[Listing.ALL]
    older = truth.page(after, 1_000, version=20)
    assert not view.merge(older, after)
    view.reach_back(20, [fact for facts in truth.events[20:] for fact in facts])
    assert view.merge(older, after)
    view.merge(truth.live(), TOP)
    page = view.page(Query(limit=50))
    assert isinstance(page, Page)
    assert page.entries == truth.static()
    delta = view.delta(20, 50)
    assert delta is not None
    assert sorted(e.session for e in delta.entries) == ["direct:a/3", "direct:a/4"]


def test_muted_conversations_are_told_apart_in_the_total() -> None:
    truth = Truth()
    truth.write(direct(1, 5, unread=3), direct(2, 6, unread=4, flags=Flag.MUTED), direct(3, 7))
    assert view_of(truth).totals() == Totals(7, 4, 2)


def test_a_recount_finds_a_drift_and_heals_it() -> None:
    truth = Truth()
    truth.write(direct(1, 5, unread=3))
    view = view_of(truth)
    view._unread += 1
    recount = view.recount()
    assert recount.drifted
    assert (recount.kept.unread, recount.computed.unread) == (4, 3)
    assert view.totals() == Totals(3, 0, 1)
    assert not view.recount().drifted


def test_a_group_whose_head_is_not_known_stays_where_it_was() -> None:
    truth, heads = Truth(), FakeHeads()
    truth.write(direct(1, 50), ("group:g", 10, 2, int(Flag.LIVE), ""))
    view = view_of(truth, heads)
    assert [entry.session for entry in view.refresh()] == ["group:g"]
    heads.set("group:g", 60, 5)
    assert view.refresh() == []
    assert view.totals() == Totals(5, 0, 1)
    heads.cold.add("group:g")
    heads.changes += 1
    assert [entry.session for entry in view.refresh()] == ["group:g"]
    page = view.page(Query())
    assert isinstance(page, Page)
    assert [entry.session for entry in page.entries] == ["group:g", "direct:a/1"]


def test_what_was_unread_before_the_row_changed_is_not_shown_with_the_new_one() -> None:
    truth, heads = Truth(), FakeHeads()
    truth.write(("group:g", 10, 2, int(Flag.LIVE), ""), ("group:h", 11, 0, int(Flag.LIVE), ""))
    view = view_of(truth, heads)
    heads.set("group:g", 60, 5)
    heads.set("group:h", 70, 0)
    assert view.refresh() == []
    heads.cold.add("group:g")
    truth.write(("group:g", 10, 3, int(Flag.LIVE), ""))
    view.feed(2, truth.events[1])
    assert [entry.session for entry in view.refresh()] == ["group:g"]
    assert view.headless()
    assert view.headless("group:g")
    assert not view.headless("group:h")
    heads.cold.clear()
    heads.set("group:g", 60, 1)
    assert view.refresh() == []
    assert not view.headless()
    assert view.totals() == Totals(1, 0, 1)


def test_a_head_that_is_not_known_to_hold_is_shown_and_asked_for() -> None:
    truth, heads = Truth(), FakeHeads()
    truth.write(("group:g", 10, 2, int(Flag.LIVE), ""))
    view = view_of(truth, heads)
    heads.heads["group:g"] = Head(7, 60, 5, b"")
    for _ in range(2):
        assert [entry.session for entry in view.refresh()] == ["group:g"]
        assert view.totals() == Totals(5, 0, 1)


def test_rows_are_encoded_once() -> None:
    class Counting(PlainRows):
        encoded = 0

        def encode(self, entry: Entry, head: object) -> bytes:
            self.encoded += 1
            return super().encode(entry, None)

    truth, form = Truth(), Counting()
    truth.write(*(direct(n, n + 1) for n in range(10)))
    view = MailboxView(truth.everything(), form, FakeHeads())
    for _ in range(3):
        view.page(Query(limit=5))
    assert form.encoded == 5
    truth.write(direct(9, 30))
    view.feed(2, truth.events[1])
    view.page(Query(limit=5))
    assert form.encoded == 6


@settings(max_examples=30)
@given(st.text(max_size=30), st.booleans(), st.integers(0, 2**63 - 1), st.text(max_size=40))
def test_a_cursor_comes_back_as_it_went(
    label: str, unread_only: bool, rank: int, session: str
) -> None:
    query = Query(label, unread_only)
    try:
        text = write_cursor(query, (-rank, session))
    except UnicodeEncodeError:
        return  # no session or label is made of those
    assert read_cursor(text, query) == query._replace(after=(-rank, session))
    with pytest.raises(BadRequest, match="another label"):
        read_cursor(text, Query(label, not unread_only))


@pytest.mark.parametrize(
    "text", ["", "A", "AAAAAAAAAAAA", "é", "x" * 2_000, "////", write_cursor(Query(), TOP)[1:]]
)
def test_what_is_no_cursor_is_refused(text: str) -> None:
    with pytest.raises(BadRequest):
        read_cursor(text, Query())


@given(st.data())
def test_a_damaged_cursor_is_refused(data: st.DataObject) -> None:
    text = write_cursor(Query(), (-123_456_789, "direct:alice/bob"))
    place = data.draw(st.integers(0, len(text) - 2))
    letter = data.draw(st.sampled_from("ABCDEFabcdef0123-_"))
    damaged = text[:place] + letter + text[place + 1 :]
    if damaged != text:
        with pytest.raises(BadRequest):
            read_cursor(damaged, Query())
