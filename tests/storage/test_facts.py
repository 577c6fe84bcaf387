"""Facts in history: the newest of each key, in lists that are read a page at a time."""

from __future__ import annotations

import random
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from im_actors.core.fact_lists import (
    FACT_KEYS_MAX,
    FACT_PAGE_BYTES_MAX,
    FACT_PAGE_MAX,
    FactQuery,
    OfKeys,
    Prefixed,
    Ranked,
    Since,
    check_query,
)
from im_actors.core.facts import RANK_MAX, Fact, pack_request
from im_actors.core.model import Event, EventKind, body_checksum, encode_event, make_record
from im_actors.errors import BadRequest, CorruptData, InvariantBroken
from im_actors.storage import history as history_module
from im_actors.storage.facts import BY_KEY, BY_RANK, BY_SEQ, SCHEMA, FactTable, fact_guard
from im_actors.storage.history import History
from im_actors.storage.steps import STEP_ROWS
from tests.fact_model import count_ranks, fact_page, facts_of
from tests.storage.conftest import LogBuilder, quick_directory

BIG = 1 << 30


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "history"


def problems(history: History) -> list[str]:
    found = [scan for scan in history.scan() if scan is not None]
    return [problem.text for scan in found for problem in scan.problems]


def ask(history: History, session: str, query: FactQuery) -> list[Fact]:
    """One page."""
    return history.facts(session, query)[1].facts


def pages(
    history: History, session: str, first: FactQuery, following: Callable[[Fact], FactQuery]
) -> Iterator[list[Fact]]:
    """All pages of a list."""
    query = first
    while True:
        _, page = history.facts(session, query)
        yield page.facts
        if not page.more:
            return
        query = following(page.facts[-1])


def all_ranked(history: History, session: str, limit: int) -> list[list[Fact]]:
    return list(
        pages(
            history, session, Ranked(0, "", limit), lambda f: Ranked(f.rank, f.key, limit)
        )
    )  # fmt: skip


def all_prefixed(history: History, session: str, prefix: str, limit: int) -> list[list[Fact]]:
    first = Prefixed(prefix, "", limit)
    return list(pages(history, session, first, lambda f: Prefixed(prefix, f.key, limit)))


def all_since(history: History, session: str, seq: int, limit: int) -> list[list[Fact]]:
    return list(pages(history, session, Since(seq, limit), lambda f: Since(f.seq, limit)))


def joined(found: list[list[Fact]]) -> list[Fact]:
    return [fact for page in found for fact in page]


# -- against a dumb model --------------------------------------------------------------------------

KEYS = st.sampled_from(["a", "ab", "b", "b\0", "c/é", "c/😀", "c/\uffff", "m/1", "m/2", "z"])
RANKS = st.sampled_from([0, 0, 1, 2, 7, 7, 1 << 62, RANK_MAX])
VALUES = st.sampled_from([None, b"", b"x", b"y" * 40])
EVENTS = st.lists(
    st.tuples(st.sampled_from("st"), st.dictionaries(KEYS, st.tuples(RANKS, VALUES), max_size=4)),
    max_size=24,
)


def written(events: list[tuple[str, dict[str, tuple[int, bytes | None]]]]) -> LogBuilder:
    """A log of state events, one a record."""
    log = LogBuilder()
    for session, said in events:
        log.state(1, session, *[(key, rank, value) for key, (rank, value) in said.items()])
    return log


def check(history: History, log: LogBuilder, limit: int) -> None:
    """Every list of every session, page by page, is the model's."""
    for session in ("s", "t", "nobody"):
        events = log.events.get(session, [])
        facts, last = facts_of(events), len(events)
        queries = [
            *[Ranked(0, "", limit), *(Ranked(f.rank, f.key, limit) for f in facts.values())],
            *[Since(seq, limit) for seq in range(last + 1)],
            OfKeys((*facts, "no such key", "", "\0")),
        ]
        for prefix in ("", "b", "c/", "m/1", "nothing"):
            queries += [Prefixed(prefix, after, limit) for after in ("", *facts, "b\1")]
        for query in queries:
            assert history.facts(session, query) == (last, fact_page(facts, query))
        ranges = [(1, RANK_MAX), (2, 7), (7, 7), (8, (1 << 62) - 1), (3, 2)]
        counts = count_ranks(facts.values(), ranges)
        assert history.count_ranks(session, ranges) == (last, counts)
        ranked = sum(fact.rank > 0 for fact in facts.values())
        assert len(joined(all_ranked(history, session, limit))) == ranked
        assert len(joined(all_prefixed(history, session, "", limit))) == len(facts)
        assert len(joined(all_since(history, session, 0, limit))) == len(facts)


@settings(max_examples=20)
@given(
    events=EVENTS,
    order=st.randoms(use_true_random=False),
    limit=st.integers(1, 5),
    staged=st.integers(0, 24),
)
def test_lists_are_those_of_the_model(
    events: list[Any], order: random.Random, limit: int, staged: int
) -> None:
    """Whatever came first, came twice, is written or only staged."""
    log = written(events)
    records = log.batch(1)
    shuffled = [*records, *records[:3]]
    order.shuffle(shuffled)
    with quick_directory() as root:
        history = History(Path(root) / "history")
        history.apply(shuffled[:staged], {})
        history.stage(shuffled[staged:], {1: len(records)})
        check(history, log, limit)
        history.close()
        history = History(Path(root) / "history", create=False)
        history.apply(records, {1: len(records)})
        check(history, log, limit)
        assert problems(history) == []
        history.close()


def test_what_is_staged_holds_against_what_is_stored(path: Path, log: Any) -> None:
    for number in range(40):
        log.state(1, "s", (f"k{number % 7}", number + 1, b"%d" % number), (f"only{number}", 1, b""))
    history = History(path)
    history.apply(log.batch(1, 1, 20), {1: 20})
    history.stage(log.batch(1, 21, 30), {1: 30})
    # Old ones again, as after a crash: they change nothing.
    history.stage(log.batch(1, 1, 5), {})
    history.stage(log.batch(1, 31), {1: 40})
    check(history, log, 3)
    assert history.applied() == {1: 20}, "it is read without being written"
    history.close()


def test_an_old_record_that_comes_late_changes_nothing(path: Path, log: Any) -> None:
    for number in range(3):
        log.state(1, "s", ("k", number + 1, b"%d" % number))
    history = History(path)
    history.apply(log.batch(1, 3), {1: 3})
    history.stage(log.batch(1, 2, 2), {})
    assert ask(history, "s", OfKeys(("k",))) == [Fact("k", 3, 3, b"2")]
    history.apply(log.batch(1, 1, 1), {})
    assert ask(history, "s", OfKeys(("k",))) == [Fact("k", 3, 3, b"2")]
    assert history.index.facts.staged(1) == 0, "what is written is not kept in memory"
    history.close()


def test_many_facts_of_one_event_are_written_in_steps(path: Path, log: Any) -> None:
    """Also when a single record says all of them."""
    log.state(1, "s", *[(f"k{number}", 0, b"") for number in range(20 * STEP_ROWS)])
    history = History(path)
    history.stage(log.batch(1), {1: 1})
    rests: list[None] = []
    history.rest = lambda: rests.append(None)
    history.write()
    assert len(rests) >= 20
    assert len(joined(all_since(history, "s", 0, 100))) == 20 * STEP_ROWS
    history.close()


# -- pages -----------------------------------------------------------------------------------------


def test_a_page_has_a_size(path: Path, log: Any) -> None:
    value = bytes(30_000)
    for number in range(30):
        log.state(1, "s", (f"{number:03}", number + 1, value))
    history = History(path)
    history.apply(log.batch(1), {1: 30})
    most = FACT_PAGE_BYTES_MAX // len(value) + 1
    for found in (all_ranked(history, "s", 100), all_prefixed(history, "s", "0", 100)):
        assert [len(page) for page in found] == [most, 30 - most]
    assert [len(page) for page in all_since(history, "s", 0, 100)] == [most, 30 - most]
    # Those asked for by name come all: their number is limited instead.
    keys = tuple(f"{number:03}" for number in range(30))
    assert len(ask(history, "s", OfKeys(keys))) == 30
    history.close()


def test_a_page_does_not_end_within_an_event(path: Path, log: Any) -> None:
    for number in range(6):
        log.state(1, "s", *[(f"k{number}-{n}", 0, b"") for n in range(5)])
    history = History(path)
    history.apply(log.batch(1, 1, 3), {1: 3})
    history.stage(log.batch(1, 4), {1: 6})
    assert [len(page) for page in all_since(history, "s", 1, 7)] == [10, 10, 5]
    assert {fact.seq for fact in ask(history, "s", Since(3, 1))} == {4}
    history.close()


def test_a_list_of_much_that_is_staged_is_written_first(
    path: Path, log: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(history_module, "STAGED_READ_MAX", 20)
    for number in range(21):
        log.state(1, "s", (f"k{number}", 1, b""))
    history = History(path)
    history.stage(log.batch(1, 1, 20), {1: 20})
    assert len(ask(history, "s", Since(0, 100))) == 20
    assert history.applied() == {}
    history.stage(log.batch(1, 21), {1: 21})
    assert len(ask(history, "s", Since(0, 100))) == 21
    assert history.applied() == {1: 21}
    history.close()


@pytest.mark.parametrize(
    ("query", "bounded"),
    [
        (Ranked(0, "", BIG), Ranked(0, "", FACT_PAGE_MAX)),
        (Since(7, FACT_PAGE_MAX + 1), Since(7, FACT_PAGE_MAX)),
        (Prefixed("c/", "c/x", 25), Prefixed("c/", "c/x", 25)),
        (OfKeys(("k",) * FACT_KEYS_MAX), OfKeys(("k",) * FACT_KEYS_MAX)),
    ],
)
def test_a_limit_is_brought_into_bounds(query: FactQuery, bounded: FactQuery) -> None:
    assert check_query(query) == bounded


@pytest.mark.parametrize(
    "query",
    [
        Ranked(0, "", 0),
        Ranked(-1, "", 1),
        Ranked(RANK_MAX + 1, "", 1),
        Since(-1, 1),
        Since(1 << 63, 1),
        Since(0, -5),
        Prefixed("", "", 0),
        OfKeys(("k",) * (FACT_KEYS_MAX + 1)),
    ],
)
def test_what_cannot_be_asked_is_refused(query: FactQuery) -> None:
    with pytest.raises(BadRequest):
        check_query(query)


# -- slots, files and bad bodies -------------------------------------------------------------------


def test_a_dropped_slot_has_no_facts(path: Path, log: Any) -> None:
    for number in range(20):
        log.state(1, "s", (f"k{number}", 1, b"1"))
        log.state(2, "t", (f"k{number}", 1, b"2"))
    history = History(path)
    history.apply(log.batch(1, 1, 10) + log.batch(2, 1, 10), {1: 10, 2: 10})
    history.stage(log.batch(1, 11) + log.batch(2, 11), {1: 20, 2: 20})
    history.drop(1)
    assert history.facts("s", Since(0, 100)) == (0, ([], False))
    assert len(ask(history, "t", Since(0, 100))) == 20
    history.write()
    history.close()
    history = History(path, create=False)
    assert history.facts("s", Since(0, 100)) == (0, ([], False))
    (stored,) = history.index.db.row("SELECT count(*) FROM facts")
    assert stored == 20
    # A new life of the slot, in which less has been said.
    history.apply(log.batch(1, 1, 3), {1: 3})
    assert [fact.key for fact in ask(history, "s", Since(0, 100))] == ["k0", "k1", "k2"]
    assert problems(history) == []
    history.close()


def test_a_file_from_before_there_were_facts_gets_them(path: Path, log: Any) -> None:
    for _ in range(5):
        log.record(1, ("s", "u/d"))
    history = History(path)
    history.apply(log.batch(1), {1: 5})
    connection = history.index.db.connection
    for table in ("facts", "places", "rewriting", "left_over"):
        connection.execute(f"DROP TABLE {table}")
    connection.execute("PRAGMA user_version=1")
    history.close()
    history = History(path, create=False)
    assert history.index.db.row("PRAGMA user_version") == (3,)
    assert history.facts("s", Since(0, 10)) == (5, ([], False))
    log.state(1, "s", ("k", 1, b"v"))
    history.apply(log.batch(1, 6), {1: 6})
    check(history, log, 2)
    assert problems(history) == []
    history.close()


def test_what_was_sent_is_known_again_and_not_what_was_made_of_it(path: Path, log: Any) -> None:
    """A resend has the body that was sent: its checksum has to be the one that owners are told."""
    for number in range(200):
        log.state(1, "s", ("k", number, b"%d" % number))
    history = History(path)
    history.apply(log.batch(1), {1: 200})
    checksum = body_checksum(EventKind.GROUP, pack_request("put"))
    for n in (1, 70, 200):
        assert history.find("s", "u/d", n) == (n, log.events["s"][n - 1].key, checksum)
    (image,) = history.session_states(["s"])
    assert {known for _, known in image.devices[0].recent} == {checksum}
    assert problems(history) == []
    history.close()


def test_a_state_that_cannot_be_read_is_no_damage_of_the_disk(path: Path) -> None:
    """As a defect of an owner would write it. To put the disk aside for it would help nobody."""
    event = Event("s", 1, 1 << 30, int(EventKind.GROUP), "u/d", 1, b"no state")
    history = History(path)
    with pytest.raises(InvariantBroken, match="lsn 1"):
        history.apply([(1, make_record(1, 1, 1, [encode_event(event)]))], {1: 1})
    history.abandon()


# -- damage ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A closed history with facts of three sessions, on several pages."""
    log = LogBuilder()
    for number in range(120):
        facts = [(f"k{number % 60:03}-{n}", 1000 + number * 4 + n, b"value %d" % n) for n in (0, 1)]
        log.state(1, "rst"[number % 3], *facts, *[(f"{key}+", rank, v) for key, rank, v in facts])
    path = tmp_path_factory.mktemp("facts") / "history"
    history = History(path)
    history.apply(log.batch(1), {1: 120})
    history.close()
    return path


@pytest.fixture
def stored(made: Path) -> Iterator[Path]:
    """One of its own for each test."""
    with quick_directory() as root:
        yield Path(shutil.copytree(made, Path(root) / "history"))


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE facts SET seq=seq+1 WHERE session=2 AND key='k001-1'",
        "UPDATE facts SET rank=rank+1 WHERE session=2 AND key='k001-1'",
        "UPDATE facts SET rank=0 WHERE session=2 AND key='k001-1'",
        "UPDATE facts SET rank='x' WHERE session=2 AND key='k001-1'",
        "UPDATE facts SET seq='x' WHERE session=2 AND key='k001-1'",
        "UPDATE facts SET value=x'00' WHERE session=2 AND key='k001-1'",
        "UPDATE facts SET value='text' WHERE session=2 AND key='k001-1'",
        "UPDATE facts SET value=NULL WHERE session=2 AND key='k001-1'",
        "UPDATE facts SET guard=guard+1 WHERE session=2 AND key='k001-1'",
        "UPDATE facts SET key='k001-1x' WHERE session=2 AND key='k001-1'",
        "UPDATE facts SET key=CAST(x'ff' AS TEXT) WHERE session=2 AND key='k001-1'",
        "UPDATE facts SET session=1 WHERE session=2 AND key='k001-1'",
    ],
)
def test_changed_facts_are_found_and_not_served(stored: Path, statement: str) -> None:
    history = History(stored)
    history.index.db.connection.execute(statement)
    assert problems(history)

    def read_all() -> None:
        for session in "rst":
            all_prefixed(history, session, "", 7)

    with pytest.raises(CorruptData, match="fact"):
        read_all()
    history.abandon()


@pytest.mark.parametrize(
    ("statement", "divergent"),
    [
        ("DELETE FROM facts WHERE session=2 AND key='k001-1'", 1),
        ("DELETE FROM facts WHERE session=3", 80),
        (
            "INSERT INTO facts SELECT 1, key, seq, rank, value, guard FROM facts"
            " WHERE session=2 AND key='k001-1'",
            0,
        ),
    ],
)
def test_lost_facts_are_counted(stored: Path, statement: str, divergent: int) -> None:
    history = History(stored)
    history.index.db.connection.execute(statement)
    (found,) = [scan for scan in history.scan() if scan is not None]
    assert found.problems
    assert found.divergent == divergent
    history.abandon()


def test_a_fact_that_no_event_has_said_is_divergent(stored: Path) -> None:
    """With good checksums, as a defect would leave it."""
    history = History(stored)
    with history.index.db.transaction() as connection:
        history.index.facts.stage(1, 0, [Fact("k000-0", 3, 7, b"of old"), Fact("new", 1, 1, b"")])
        history.index.facts.stage(2, 0, [Fact("k001-1", 1 << 40, 7, b"of the future")])
        history.index.facts.write(connection)
    history.index.facts.settle()
    (found,) = [scan for scan in history.scan() if scan is not None]
    # What is newer than all that was read is taken for what came meanwhile.
    assert found.divergent == 2
    assert {problem.kind for problem in found.problems} == {"facts"}
    assert "'k000-0', 'new'" in found.problems[0].text
    history.abandon()


def every_list(history: History) -> list[list[Fact]]:
    return [
        joined(found)
        for session in "rst"
        for found in (
            all_ranked(history, session, 7),
            all_since(history, session, 0, 7),
            all_prefixed(history, session, "", 7),
        )
    ]


def test_a_flipped_bit_hides_nothing_from_verify(stored: Path) -> None:
    """A row changes, or a list leads elsewhere, ends early or begins late: whoever reads it is
    told, or verify is."""
    file = stored / "index.db"
    history = History(stored, create=False)
    truth = every_list(history)
    history.close()
    whole = file.read_bytes()
    pages = [at for at in range(0, len(whole), 4096) if b"k0" in whole[at : at + 4096]]
    rng = random.Random(3)
    told = 0
    for _ in range(120):
        page = rng.choice(pages)
        at = rng.choice([at for at in range(page + 8, page + 4096) if whole[at]])
        changed = bytearray(whole)
        changed[at] ^= 1 << rng.randrange(8)
        file.write_bytes(changed)
        told += _is_told(stored, truth)
    assert told > 80


def _is_told(stored: Path, truth: list[list[Fact]]) -> bool:
    """Whether a reader was told of damage."""
    history = History(stored, create=False)
    try:
        served = every_list(history)
    except CorruptData:
        return True
    else:
        assert served == truth or problems(history), "less is served, and verify sees nothing"
        assert all(set(some) <= set(right) for some, right in zip(served, truth, strict=True))
        return False
    finally:
        history.abandon()


@pytest.mark.parametrize("mask", [0x01, 0x08, 0x40])
def test_a_key_that_changed_is_not_absent(stored: Path, mask: int) -> None:
    """Where it has been, there is now another one, before or behind it, with a wrong checksum."""
    file = stored / "index.db"
    whole = file.read_bytes()
    found = [at for at in range(len(whole)) if whole.startswith(b"k031-1", at)]
    told = 0
    for at in found:
        changed = bytearray(whole)
        changed[at + 2] ^= mask
        file.write_bytes(changed)
        history = History(stored, create=False)
        try:
            assert len(ask(history, "s", OfKeys(("k031-1",)))) == 1
        except CorruptData:
            told += 1
        finally:
            history.abandon()
    # In the table; its lists are not asked.
    assert told >= 1


class Rows:
    """A database that has these rows before what is asked for, and from there on."""

    path = Path("index.db")

    def __init__(self, behind: list[Any], ahead: list[Any]) -> None:
        self.behind, self.ahead = behind, ahead

    def rows(self, sql: str, values: Any) -> Iterator[Any]:
        return iter(self.behind if sql.endswith("LIMIT 1") else self.ahead)


def row(session: int, fact: Fact, place: Any) -> tuple[Any, ...]:
    return (session, *fact, fact_guard(session, fact), place)


FIRST, SECOND = Fact("a", 5, 90, b"1"), Fact("b", 6, 80, b"2")
GOOD = [row(1, FIRST, 90), row(1, SECOND, 80), row(0, FIRST, 90)]


def test_a_list_ends_where_another_session_begins() -> None:
    table = FactTable(Rows([row(2, SECOND, 80)], GOOD))  # type: ignore[arg-type]
    assert list(table.rows(1, BY_RANK, (2, 0, ""))) == [FIRST, SECOND]


@pytest.mark.parametrize(
    ("behind", "ahead"),
    [
        ([row(2, SECOND, 81)], GOOD),
        ([(2, "b", None, None, None, None, 80)], GOOD),
        ([], [*GOOD[:2], row(0, FIRST, 91)]),
        ([], [*GOOD[:2], (0, "a", None, None, None, None, 90)]),
        ([], [GOOD[1], GOOD[0]]),
        ([], [GOOD[0], GOOD[0]]),
        ([], [row(1, FIRST, 91)]),
    ],
    ids=[
        *("moved before", "lost before", "moved behind", "lost behind"),
        *("out of order", "twice", "in a wrong place"),
    ],
)
def test_a_list_that_leads_astray_is_told(behind: list[Any], ahead: list[Any]) -> None:
    table = FactTable(Rows(behind, ahead))  # type: ignore[arg-type]
    with pytest.raises(CorruptData, match="fact"):
        list(table.rows(1, BY_RANK, (2, 0, "")))


def test_the_schema_is_what_it_was_made_for() -> None:
    """The lists have to be read from their indexes alone, or what they lead to is not checked."""
    connection = sqlite3.connect(":memory:")
    for statement in SCHEMA:
        connection.execute(statement)
    for order, places in ((BY_RANK, (1, 2, "k")), (BY_SEQ, (1, 2, "k")), (BY_KEY, (1, "k"))):
        for select in (order.ahead, order.behind):
            plan = [row[3] for row in connection.execute(f"EXPLAIN QUERY PLAN {select}", places)]
            assert "SEARCH" in plan[0]
            assert order is BY_KEY or "COVERING INDEX" in plan[0]
            assert not any("B-TREE" in step for step in plan), "it sorts"
    connection.close()
