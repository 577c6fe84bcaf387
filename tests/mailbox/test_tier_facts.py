"""The cold tier over replicas that answer a few facts at a time."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from im_actors.core.facts import Fact
from im_actors.errors import NotReachable
from im_actors.mailbox.rows import END, Flag, Listing, entry_place
from im_actors.mailbox.tier_facts import FactPage, FactTier
from tests.mailbox.fakes import PlainRows, Replicas, Truth

seeds = settings(
    max_examples=60,
    phases=[Phase.explicit, Phase.reuse, Phase.generate],  # a seed does not shrink
)


def random_truth(rng: Random) -> Truth:
    """With many rows of one rank, groups, rows that are gone, and facts that are no rows."""
    truth = Truth()
    for _ in range(rng.randint(1, 40)):
        session = rng.choice((f"direct:a/{rng.randint(0, 30)}", f"group:{rng.randint(0, 9)}"))
        live = Flag.LIVE if session.startswith("group:") else 0
        rank = rng.choice((0, 1, 2, 2, 2, 3, rng.randint(1, 30)))
        truth.write((session, rank, rng.randint(0, 2), int(live), ""))
        if rng.random() < 0.1:
            truth.forget(session)
        if rng.random() < 0.2:
            truth.events[-1].append(Fact("d/phone", truth.version, rng.randint(0, 3), b"x"))
    return truth


@seeds
@given(seed=st.integers(0, 2**32))
async def test_pages_are_the_list_whatever_the_ranks_are(seed: int) -> None:
    rng = Random(seed)
    truth = random_truth(rng)
    tier = FactTier(Replicas({"alice": truth}, rng.randint(1, 9)), PlainRows())
    limit = rng.randint(1, 6)
    found = []
    copy = await tier.first_page("alice", limit, 0)
    while True:
        assert copy is not None
        assert copy.version == truth.version
        static = [row for row in copy.entries if not row.flags & Flag.LIVE]
        found += static
        after = copy.complete[Listing.ALL]
        if after == END:
            break
        assert all(entry_place(row) <= after for row in static)
        copy = await tier.page("alice", after, limit, 0)
        assert copy is not None
        assert copy.complete[Listing.ALL] > after
    assert found == truth.static()
    some = rng.choice(truth.static() or [None])
    if some is not None:  # a place that another tier named, within a rank
        rest = await tier.page("alice", entry_place(some), 500, 0)
        assert rest is not None
        until = rest.complete[Listing.ALL]
        rows = [row for row in truth.static() if entry_place(some) < entry_place(row) <= until]
        assert [row for row in rest.entries if not row.flags & Flag.LIVE] == rows


@seeds
@given(seed=st.integers(0, 2**32))
async def test_groups_single_rows_and_changes(seed: int) -> None:
    rng = Random(seed)
    truth = random_truth(rng)
    tier = FactTier(Replicas({"alice": truth}, rng.randint(1, 9)), PlainRows())
    whole = await tier.whole("alice", Listing.LIVE, 0)
    assert whole is not None
    assert whole.complete == {Listing.LIVE: END}
    assert sorted(whole.entries) == sorted(truth.live().entries)
    assert await tier.whole("alice", Listing.UNREAD, 0) is None
    names = [*truth.rows(), "direct:nobody/x"]
    rows = await tier.rows("alice", names, 0)
    assert rows is not None
    assert {row.session: row for row in rows.entries} == truth.rows()
    after = rng.randint(0, truth.version)
    changed = await tier.since("alice", after, truth.version)
    assert changed.upto == truth.version
    newest = {fact.key: fact for facts in truth.events for fact in facts}
    assert sorted(f.key for f in changed.facts) == sorted(
        fact.key for fact in newest.values() if fact.seq > after
    )


async def test_changes_of_replicas_that_differ_are_not_put_together() -> None:
    truth = Truth()
    for n in range(9):
        truth.write((f"direct:a/{n % 2}", n + 1, 0, 0, ""))
    replicas = Replicas({"alice": truth}, 1)

    class Differing(Replicas):
        async def since(self, session: str, seq: int, limit: int, at_least: int) -> FactPage:
            page = await replicas.since(session, seq, limit, at_least)
            return page._replace(version=page.version - len(replicas.asked))

    with pytest.raises(NotReachable):
        await FactTier(Differing({}), PlainRows()).since("alice", 0, 3)


async def test_a_first_page_brings_what_is_live_in_the_same_round_trip() -> None:
    truth = Truth()
    for n in range(300):
        truth.write((f"direct:a/{n}", n + 1, 0, 0, ""))
    replicas = Replicas({"alice": truth})
    tier = FactTier(replicas, PlainRows())
    page = await tier.first_page("alice", 200, 0)
    assert page is not None
    assert page.complete[Listing.LIVE] == END
    assert replicas.asked == ["ranked", *["prefixed"] * 2]


async def test_a_first_page_leaves_out_what_is_live_at_another_version() -> None:
    truth = Truth()
    for n in range(3):
        truth.write((f"group:{n}", n + 1, 0, 0, ""))
    replicas = Replicas({"alice": truth})

    class Lagging(Replicas):
        async def prefixed(
            self, session: str, prefix: str, after_key: str, limit: int, at_least: int
        ) -> FactPage:
            page = await replicas.prefixed(session, prefix, after_key, limit, at_least)
            return page._replace(version=page.version - 1)

    page = await FactTier(Lagging({"alice": truth}), PlainRows()).first_page("alice", 200, 0)
    assert page is not None
    assert page.version == truth.version
    assert list(page.complete) == [Listing.ALL]


async def test_what_is_live_is_all_of_which_mailboxes_are_not_told() -> None:
    truth = Truth()
    live = [
        "a team",
        "direct;",
        "e",
        "group:a",
        "group:b",
        "notice:system/alice",
        "team",
        "zoo",
        "𝄞",
    ]
    for n, session in enumerate(live):
        truth.write((session, n + 1, 0, int(Flag.LIVE), ""))
    for n in range(300):
        truth.write((f"direct:a/{n}", n + 100, 0, 0, ""))
    tier = FactTier(Replicas({"alice": truth}, 7), PlainRows())
    whole = await tier.whole("alice", Listing.LIVE, 0)
    assert whole is not None
    assert [entry.session for entry in whole.entries] == live
