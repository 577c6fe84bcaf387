"""What the simulation holds mailboxes against sees what is wrong, and runs meet what is rare."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from im_actors.core.conversation import Conversation, conversation_key
from im_actors.core.facts import Fact, pack_state
from im_actors.core.model import Event, EventKind, Member, make_key
from im_actors.core.names import mailbox_of
from im_actors.core.overlays import Overlay, overlay_key, overlay_rank
from im_actors.core.skips import Skips
from im_actors.core.spans import Preview
from tests.sim.__main__ import replay_command
from tests.sim.mailboxes import Mailboxes
from tests.sim.runs import run_plan
from tests.sim.world import Plan, World

SESSION = "direct:u0/u1"
KEY = make_key(1_700_000_000_000, 0, 0)
SEEDS = (1, 4)
RARE = ("mailbox_checked", "readers_checked", "note_relayed", "nack_111")


def event(session: str, seq: int, user: str, kind: EventKind, body: bytes) -> Event:
    return Event(session, seq, KEY + seq, kind, f"{user}/phone", seq, body)


def talk() -> dict[str, list[Event]]:
    """u0 writes three messages, u1 answers; u0's third one goes, and u1 has read the first and
    received the last."""
    texts = [("u0", b"one"), ("u1", b"two"), ("u0", b"three"), ("u0", b"four")]
    events = [
        event(SESSION, seq, user, EventKind.MESSAGE, text)
        for seq, (user, text) in enumerate(texts, 1)
    ]
    overlay = Overlay(int(EventKind.RECALL), "u0", None)
    recall = pack_state("recall", [], [(overlay_key(3), overlay_rank(3), overlay.to_bytes())])
    events.append(event(SESSION, 5, "u0", EventKind.RECALL, recall))
    read = pack_state("read", [SESSION, 1], [])
    reading = event(mailbox_of("u1"), 1, "u1", EventKind.MAILBOX, read)
    received = pack_state("received", [[[SESSION, 4]]], [])
    reading_on = event(mailbox_of("u1"), 2, "u1", EventKind.MAILBOX, received)
    return {SESSION: events, mailbox_of("u1"): [reading, reading_on]}


def right() -> Conversation:
    """What u1's mailbox has to say of it: the fourth is unread."""
    return Conversation(
        last_seq=5,
        last_key=KEY + 5,
        preview=Preview(4, 4, int(EventKind.MESSAGE), "u0", "four"),
        read_seq=1,
        skips=Skips(0, 0, ((2, 2), (5, 5))),
        recalled=Skips(0, 0, ((3, 3),)),
    )


def judged(row: Conversation | None) -> list[str]:
    """What the checker says of such a row in u1's mailbox; u0's is right."""
    wrong: list[str] = []
    of_u0 = Conversation(
        last_seq=5,
        last_key=KEY + 5,
        preview=Preview(4, 4, int(EventKind.MESSAGE), "u0", "four"),
        skips=Skips(0, 0, ((1, 1), (3, 5))),
        peer_read_seq=1,
        peer_delivered_seq=4,
    )
    rows = {"u0": of_u0, "u1": row}
    facts = {
        mailbox_of(user): {
            conversation_key(SESSION): Fact(conversation_key(SESSION), 1, 0, found.to_bytes())
        }
        for user, found in rows.items()
        if found is not None
    }
    replica: Any = SimpleNamespace(disk=SimpleNamespace(facts=facts))
    world: Any = SimpleNamespace(
        slots=1,
        slot_of=lambda _: 0,
        store=SimpleNamespace(views=[SimpleNamespace(members=(Member("r", "d"),))]),
        replicas={"r": replica},
        fail=lambda kind, text, slot: wrong.append(kind),
        met=lambda _: None,
    )
    mailboxes = Mailboxes(world, World(Plan(1)).rng_for("mailboxes"))
    mailboxes.active, mailboxes.users, mailboxes.crews = True, ["u0", "u1"], []
    mailboxes.book = talk()
    mailboxes.finish()
    return wrong


def test_the_row_that_follows_is_fine() -> None:
    assert judged(right()) == []


@pytest.mark.parametrize(
    "row",
    [
        None,
        right()._replace(last_seq=4, skips=Skips(0, 0, ((2, 2),))),
        right()._replace(skips=Skips(0, 0, ((5, 5),))),
        right()._replace(recalled=Skips()),
        right()._replace(read_seq=2, skips=Skips(0, 0, ((5, 5),))),
        right()._replace(peer_read_seq=1),
        right()._replace(peer_delivered_seq=1),
        right()._replace(preview=Preview(3, 5, int(EventKind.RECALL), "u0", "")),
    ],
)
def test_any_other_row_is_seen(row: Conversation | None) -> None:
    assert judged(row) == ["wrong-row"]


def test_runs_meet_what_only_mailboxes_meet() -> None:
    met: set[str] = set()
    for seed in SEEDS:
        plan = Plan(seed, operations=300)
        outcome = run_plan(plan)
        assert outcome.problem is None, f"replay: {replay_command(plan)}\n{outcome.problem}"
        met |= outcome.met.keys()
    assert met >= set(RARE), f"seeds {SEEDS} met only {sorted(met)}"
