"""The mailbox bench: what it fills, and that it tells right lists from wrong ones."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.mailbox.__main__ import main
from bench.mailbox.asking import Caller, Page
from bench.mailbox.filling import Text, fill_directory
from bench.mailbox.truth import Asked, judge
from im_actors.cli.verify_offline import verify_directories
from im_actors.core.model import Event, EventKind
from im_actors.core.names import direct_session, mailbox_of
from im_actors.testing import LocalCluster

MESSAGE = int(EventKind.MESSAGE)
PEERS = 30
OWN = 7
"""Of so many conversations the user has said the first word."""


def asked(page: Page, heard: int = 0) -> Asked:
    return Asked("alice", heard, 0.001, page)


async def test_a_filled_directory_is_sound_and_lists_are_judged_by_it(tmp_path: Path) -> None:
    async with LocalCluster(tmp_path, slots=4):
        pass
    texts = [
        Text(direct_session("alice", f"peer-{n}"), "alice" if n < OWN else f"peer-{n}", b"hi")
        for n in range(PEERS)
    ]
    told: list[int] = []
    # A message, two notes of it, and the cursors of the slots.
    assert fill_directory(tmp_path, texts, told.append) == 3 * PEERS + 4
    assert told == [PEERS]
    verdict = verify_directories(tmp_path)
    assert verdict["ok"], verdict
    async with LocalCluster(tmp_path, slots=4) as cluster:
        [gateway] = cluster.controller.running("gateway")
        alice = await Caller.connect((gateway.address, gateway.port), "alice")
        peer = await Caller.connect((gateway.address, gateway.port), "peer-0")
        before = await alice.page()
        assert before.unread == PEERS - OWN
        alice.follow(mailbox_of("alice"))
        # Counters and dedup sets go on where the filling ended: it was another device's.
        await peer.send(direct_session("alice", "peer-0"), 1, MESSAGE, b"and more")
        while (after := await alice.page()).unread == before.unread:
            pass
        timeline = await alice.timeline(mailbox_of("alice"))
        await alice.close()
        await peer.close()
    assert after.rows[0][0] == direct_session("alice", "peer-0")
    assert len(timeline) == after.version == before.version + 1
    _check_judgement(before, after, timeline)


def _check_judgement(before: Page, after: Page, timeline: list[Event]) -> None:
    def verdict(*pages: Page, heard: int = 0) -> dict[str, int]:
        found = judge([asked(page, heard) for page in pages], {"alice": timeline})
        return {kind: getattr(found, kind) for kind in ("right", "wrong", "empty", "stale")}

    right = {"right": 2, "wrong": 0, "empty": 0, "stale": 0}
    assert verdict(before, after) == right
    assert verdict(after, before)["stale"] == 1
    assert verdict(before, heard=after.version)["stale"] == 1
    assert verdict(after._replace(rows=[]))["empty"] == 1
    for wrong in (
        after._replace(rows=before.rows),
        after._replace(rows=after.rows[:-1]),
        after._replace(rows=[after.rows[1], after.rows[0], *after.rows[2:]]),
        after._replace(unread=after.unread + 1),
        after._replace(version=after.version + 1),
    ):
        assert verdict(wrong)["wrong"] == 1, wrong


def test_the_help_names_every_part(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as done:
        main(["--help"])
    assert done.value.code == 0
    text = capsys.readouterr().out
    for word in ("--parts", "list", "unread", "big", "faults", "broadcast", "--recipients"):
        assert word in text


def test_unknown_parts_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as done:
        main(["--parts", "list,tea"])
    assert done.value.code == 2
    assert "tea" in capsys.readouterr().err
