"""Flips one bit in a file of a store, and asks the store everything that it can be asked.

What may come back: what was there, or an error that says what is damaged. A reader of history may
also be told less than there is, as long as it is told that there is more: it asks elsewhere.
"""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

from im_actors.core.fact_lists import FactPage, FactQuery, OfKeys, Prefixed, Ranked, Since
from im_actors.core.model import Event, decode_event
from im_actors.errors import CorruptData, ImError
from im_actors.server.storage import ReplicaStorage
from im_actors.server.views_sqlite import SqliteViewStore
from im_actors.storage.client_store import SqliteStore
from im_actors.storage.directory import IDENTITY
from im_actors.storage.scan import scan_history, scan_journal
from im_actors.storage.verify import Stretches, join_scans
from tests.storage.writers import SESSIONS, SLOTS

DAMAGED = "damaged"
FACTS: dict[str, FactQuery] = {
    "ranked": Ranked(0, "", 7),
    "further": Ranked(9, "m9", 5),
    "prefixed": Prefixed("m", "m12", 5),
    "since": Since(10, 5),
    "of keys": OfKeys(("k0", "k1", "m3", "m6", "m15", "nothing")),
}
Answers = dict[str, Any]


class Flip(NamedTuple):
    file: str
    at: int
    bit: int
    outcome: str
    """"same", "refused" (an error names the damage), "less" (and told to be less), "wrong"."""
    detail: str


# -- what a replica answers ------------------------------------------------------------------------


def replica_answers(path: Path) -> Answers:
    return asyncio.run(_replica_answers(path))


async def _replica_answers(path: Path) -> Answers:
    storage = ReplicaStorage(path, "c", "r")
    try:
        logs, waiting = await storage.open()
        answers: Answers = {"disk": storage.data.disk}
        if reason := _quarantined(path):
            assert "db" in reason or "slot" in reason, f"unclear: {reason}"
            return {"disk": DAMAGED}
        for slot, log in logs.items():
            answers[f"log {slot}"] = (log.meta(), sorted(log.checksums.items()))
            tail = [record for there, record in waiting if there == slot]
            answers[f"waiting {slot}"] = tail
            _ask(answers, f"records {slot}", storage.history.records, slot, 1, log.applied_lsn)
        for slot in SLOTS:
            _ask_session(answers, storage, f"s{slot}")
        _ask(answers, "stranger", _whole_states, storage, "nobody's")
        answers["problems"] = _problems(storage, {slot: log.held for slot, log in logs.items()})
        return answers
    finally:
        await storage.abandon()


def _quarantined(path: Path) -> str:
    return "".join(reason.read_text() for reason in path.glob("corrupt-*/reason.txt"))


def _ask(answers: Answers, name: str, question: Callable[..., Any], *values: Any) -> None:
    if question.__name__ == "records":
        values = (*values, 1 << 40)
    try:
        answers[name] = question(*values)
    except CorruptData:
        answers[name] = DAMAGED


def _ask_session(answers: Answers, storage: ReplicaStorage, session: str) -> None:
    history = storage.history
    _ask(answers, f"states {session}", _whole_states, storage, session)
    _ask(answers, f"oldest {session}", history.read, session, 0, 0, 1000)
    _ask(answers, f"newest {session}", history.read, session, -1, 0, 1000)
    _ask(answers, f"middle {session}", history.read, session, 10, 0, 5)
    for n in (1, 7, 20):
        _ask(answers, f"key {session} {n}", _find, storage, session, n)
    for name, query in FACTS.items():
        _ask(answers, f"facts {name} {session}", _facts, storage, session, query)


def _whole_states(storage: ReplicaStorage, session: str) -> Any:
    return storage.history.whole_states([session]) or DAMAGED


def _facts(storage: ReplicaStorage, session: str, query: FactQuery) -> Any:
    return storage.history.facts(session, query)


def _find(storage: ReplicaStorage, session: str, n: int) -> Any:
    # An owner asks only for what was sent; nothing found is an alarm there and no answer.
    return storage.history.find(session, "u/d", n) or DAMAGED


def _problems(storage: ReplicaStorage, held: Stretches) -> list[str]:
    """What verify says of a replica that holds these stretches."""
    journals = [found for found in scan_journal(storage.journal) if found is not None]
    histories = [found for found in scan_history(storage.history) if found is not None]
    report = join_scans(journals, histories, storage.history.applied(), held)
    missing = [f"slot {slot.slot} lacks {slot.missing}" for slot in report.slots if slot.missing]
    return [problem.text for problem in report.problems] + missing


# -- what a view store and a client's store answer -------------------------------------------------


def view_answers(path: Path) -> Answers:
    return asyncio.run(_view_answers(path))


async def _view_answers(path: Path) -> Answers:
    store = SqliteViewStore(path / "views.db", "c")
    await store.open()
    answers: Answers = {"identity": store.identity}
    try:
        for slot in range(3):
            try:
                answers[f"view {slot}"] = await store.read(slot)
            except CorruptData:
                answers[f"view {slot}"] = DAMAGED
        answers["all"] = await store.read_all()
    except CorruptData:
        answers["all"] = DAMAGED
    finally:
        await store.close()
    return answers


def client_answers(path: Path) -> Answers:
    return asyncio.run(_client_answers(path))


async def _client_answers(path: Path) -> Answers:
    store = SqliteStore(path / "client.db", "u", "d")
    opened = await store.open(lambda keys: None, lambda error: None)
    try:
        answers: Answers = {"address": opened.address, "rows": sorted(opened.rows)}
        answers["next n"] = {session: opened.next_n.get(session) for session in SESSIONS}
        answers["cursors"] = opened.cursors
        answers["events"] = await store.events_after("a", 0, 1 << 30)
        return answers
    finally:
        await store.close()


ANSWERS: dict[str, Callable[[Path], Answers]] = {
    "replica": replica_answers,
    "client": client_answers,
    "views": view_answers,
}


# -- flipping --------------------------------------------------------------------------------------


def files_of(path: Path, suffix: str = "") -> list[str]:
    """The files of a store that hold something."""
    names = (str(file.relative_to(path)) for file in path.rglob("*") if file.is_file())
    return sorted(
        name
        for name in names
        if name.endswith(suffix)
        and not name.endswith(("lock", "-shm"))
        and (path / name).stat().st_size
    )


def flips(kind: str, root: Path, rng: Random, count: int, suffix: str = "") -> Iterator[Flip]:
    """``count`` flips in each file, whose name ends so, of the store in ``root / "data"``, which is
    left alone."""
    data, copy = root / "data", root / "flipped"
    _copy(data, copy)
    truth = ANSWERS[kind](copy)
    for name in files_of(data, suffix):
        whole = (data / name).read_bytes()
        used = [at for at, byte in enumerate(whole) if byte]
        for turn in range(count):
            # Most of a page is often empty, and a flip there says little.
            at = rng.choice(used) if turn % 4 else rng.randrange(len(whole))
            bit = rng.randrange(8)
            _copy(data, copy)
            changed = bytearray(whole)
            changed[at] ^= 1 << bit
            (copy / name).write_bytes(changed)
            yield Flip(name, at, bit, *_judge(kind, copy, truth))


def _copy(data: Path, copy: Path) -> None:
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(data, copy)


def _judge(kind: str, copy: Path, truth: Answers) -> tuple[str, str]:
    try:
        answers = ANSWERS[kind](copy)
    except ImError as error:
        clear = str(copy) in str(error)
        return ("refused", "") if clear else ("wrong", f"an error without a place: {error!r}")
    if answers.get("disk") == DAMAGED:
        return "refused", ""
    if kind == "replica" and answers["disk"] != truth["disk"]:
        # Another disk is another member: what it holds counts for nothing.
        identity = json.loads((copy / IDENTITY).read_text())
        return ("refused", "") if identity["disk"] == answers["disk"] else ("wrong", "no disk")
    outcome, detail = "same", ""
    for question, answer in truth.items():
        found = answers.get(question)
        if found == answer or question == "problems":
            continue
        if found == DAMAGED:
            outcome = "refused" if outcome == "same" else outcome
        elif _is_less(found, answer):
            outcome, detail = "less", question
            if kind == "replica" and not answers["problems"]:
                return "wrong", f"{question}: less than there is, and verify sees nothing"
        else:
            return "wrong", f"{question}: {str(found)[:60]} instead of {str(answer)[:60]}"
    return outcome, detail


def _is_less(found: Any, answer: Any) -> bool:
    """Fewer events than asked for, all of them right, and a head that says that there are more."""
    if isinstance(answer, list):
        # Of a client's cache, which may have gaps at any time, or the first ones of a replica.
        cached = bool(answer) and isinstance(answer[0], Event)
        return found == ([e for e in answer if e in found] if cached else answer[: len(found)])
    if isinstance(answer, tuple) and isinstance(answer[1], FactPage):
        return _is_less_facts(found, answer)
    if not hasattr(answer, "events") or not hasattr(found, "events"):
        return False
    part = [decode_event(event).seq for event in found.events]
    return (
        found.last_seq == answer.last_seq
        and set(found.events) <= set(answer.events)
        and part == list(range(part[0], part[0] + len(part)))
        if part
        else found.last_seq == answer.last_seq
    )


def _is_less_facts(found: Any, answer: Any) -> bool:
    """A page in which facts are passed over; further ones may come instead, if it goes on."""
    last_seq, (facts, more) = answer
    seq, (some, _) = found
    rest = [fact for fact in some if fact not in facts]
    return seq == last_seq and len(some) - len(rest) < len(facts) and (more or not rest)
