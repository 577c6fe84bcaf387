"""Conversations, unread counts, groups and devices over TCP, against a small gateway."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from im_actors.client import Client, ClientConfig, EventKind, Forbidden, NotFound, SendState
from im_actors.errors import BadRequest, Overloaded, RetryableError, ShuttingDown
from im_actors.storage.client_store import SqliteStore
from im_actors.wire import messages as m
from tests.client.user_gateway import UserGateway

NOWHERE = "im://127.0.0.1:1"
QUICK = ClientConfig(
    reconnect_base_ms=1, reconnect_cap_ms=20, refused_retry_ms=50, probe_ms=50, drain_ms=1_000,
    history_timeout_ms=60_000,
)  # fmt: skip
BOB = "bob/pc-00000000"
TALK = "direct:alice/bob"


def client(url: str, user: str = "alice", **options: Any) -> Client:
    return Client(url, user, "phone", config=options.pop("config", QUICK), **options)


@pytest.fixture
async def gateway() -> AsyncIterator[UserGateway]:
    gateway = UserGateway()
    await gateway.start()
    yield gateway
    await gateway.stop()


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "alice.db"


async def until(condition: Callable[[], object]) -> None:
    """For what happens in this process and has no event."""
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.002)


async def until_async(condition: Callable[[], Awaitable[object]]) -> None:
    async with asyncio.timeout(60):
        while not await condition():
            await asyncio.sleep(0.002)


def local_rows(im: Client) -> dict[str, int]:
    """What this device has by itself: session to unread."""
    return {row.session: row.unread for row in im._engine.user.mailbox.rows()}


# --- the list -------------------------------------------------------------------------------------


async def test_the_list_comes_from_the_server_and_is_there_without_it(
    gateway: UserGateway, store: Path
) -> None:
    gateway.post(TALK, "one", "two", device=BOB)
    gateway.post("direct:alice/carol", "hi", device="carol/pc-00000000")
    async with client(gateway.url, store=store) as im:
        await im.connected(10)
        assert im.direct("bob") == TALK
        page = await im.conversations()
        assert [(c.title, c.preview, c.unread) for c in page.conversations] == [
            ("bob", "two", 2), ("carol", "hi", 1),
        ]  # fmt: skip
        assert (page.unread, page.offline, page.next) == (3, False, None)
        inputs = page.conversations[0].inputs
        assert inputs == (0, 2, 0, ())
        await until(lambda: im._engine.user.mailbox.known.version)
    async with client(NOWHERE, store=store) as im:
        offline = await im.conversations()
        assert [c.title for c in offline.conversations] == ["bob", "carol"]
        assert (offline.unread, offline.offline) == (3, True)
        assert 0 < page.as_of_ms <= offline.as_of_ms
        assert (await im.unread()).count == 3
        found = await im.conversation(TALK)
        assert found is not None
        assert (found.preview, found.sender, found.kind) == ("two", "bob", EventKind.MESSAGE)
        assert await im.conversation("direct:alice/nobody") is None


async def test_pages(gateway: UserGateway) -> None:
    for name in ("b", "c", "d", "e", "f"):
        gateway.post(f"direct:alice/{name}", "hi", device=f"{name}/pc-00000000")
    async with client(gateway.url) as im:
        await im.connected(10)
        titles: list[str] = []
        after = None
        for _ in range(3):
            page = await im.conversations(2, after)
            titles += [c.title for c in page.conversations]
            after = page.next
        assert (sorted(titles), after) == (["b", "c", "d", "e", "f"], None)
        first = await im.conversations(2)
        await until(lambda: len(local_rows(im)) == 5)
        await gateway.stop()
        gateway.cut()
        await until(lambda: not im.status().online)
        rest = await im.conversations(100, first.next)
        assert rest.offline
        assert [c.title for c in (*first.conversations, *rest.conversations)] == titles
        local = await im.conversations(2, (await im.conversations(2)).next)
        assert [c.title for c in local.conversations] == titles[2:4]
        for wrong in ("x", "5", "a/b/c"):
            with pytest.raises(BadRequest):
                await im.conversations(2, wrong)
        with pytest.raises(BadRequest):
            await im.conversations(0)


async def test_a_new_device_knows_what_is_folded_also_when_a_list_is_asked_for_first(
    gateway: UserGateway,
) -> None:
    async with client(gateway.url) as im:
        await (await im.send(TALK, "hi")).acked(10)
        await (await im.fold(TALK, "later")).acked(10)
    async with client(gateway.url) as pad:
        await pad.connected(10)
        assert (await pad.conversations()).conversations == []
        await until(lambda: pad.labels() == ["later"])
        everything = await pad.conversations(label=None, local=True)
        assert [row.session for row in everything.conversations] == [TALK]


async def test_news_appear_by_themselves(gateway: UserGateway) -> None:
    async with client(gateway.url) as im:
        await im.connected(10)
        await until(lambda: gateway.peers and "user:alice" in gateway.peers[0].followed)
        assert local_rows(im) == {}
        gateway.lag = 2
        gateway.post(TALK, "hi", device=BOB)
        await until(lambda: local_rows(im) == {TALK: 1})
        gateway.cut()
        gateway.post(TALK, "again", device=BOB)
        await until(lambda: local_rows(im) == {TALK: 2})
        sent = await im.send(TALK, "my own")
        await sent.acked(10)
        await until(lambda: im._engine.user.mailbox.row(TALK).last_seq == 3)
        assert local_rows(im) == {TALK: 2}, "own sends neither count nor read"


async def test_a_screen_is_drawn_from_here_and_told_when_to_be_drawn_again(
    gateway: UserGateway,
) -> None:
    gateway.post(TALK, "hi", device=BOB)
    async with client(gateway.url) as im:
        seen = await asyncio.wait_for(im.list_changed(), 60)
        await until(lambda: local_rows(im) == {TALK: 1})
        queries = len(gateway.queries)
        page = await im.conversations(local=True)
        assert [(c.title, c.unread) for c in page.conversations] == [("bob", 1)]
        assert (page.offline, len(gateway.queries)) == (False, queries)
        seen = await asyncio.wait_for(im.list_changed(seen - 1), 60)
        changed = asyncio.create_task(im.list_changed(seen))
        await asyncio.sleep(0)
        assert not changed.done()
        gateway.post(TALK, "again", device=BOB)
        seen = await asyncio.wait_for(changed, 60)
        changed = asyncio.create_task(im.list_changed(im._engine.user.list_version))
        await im.mark_read(TALK, 2)
        assert await asyncio.wait_for(changed, 60) > seen
        await gateway.stop()
        gateway.cut()
        await until(lambda: not im.status().online)
        assert (await im.conversations(local=True)).offline


async def test_what_changed_while_away_comes_in_pages(gateway: UserGateway, store: Path) -> None:
    gateway.post(TALK, "hi", device=BOB)
    async with client(gateway.url, store=store) as im:
        await until(lambda: local_rows(im) == {TALK: 1})
    for number in range(120):
        gateway.post(f"direct:alice/u{number:03}", "hi", device=f"u{number:03}/pc-00000000")
    async with client(gateway.url, store=store) as im:
        await until(lambda: len(local_rows(im)) == 121)
        changes = [query.args[0] for query in gateway.queries if query.what == "changes"]
        assert changes == sorted(set(changes)), "each version is asked for once"
        assert len(changes) > 1


async def test_a_server_that_does_not_answer_leaves_the_local_list(
    gateway: UserGateway, store: Path
) -> None:
    gateway.post(TALK, "hi", device=BOB)
    hasty = replace(QUICK, history_timeout_ms=300)
    async with client(gateway.url, store=store, config=hasty) as im:
        await until(lambda: local_rows(im) == {TALK: 1})
        gateway.query_error = Overloaded("busy")
        page = await im.conversations()
        assert (page.offline, page.unread) == (True, 1)
        gateway.query_error, gateway.answers_none = None, True
        page = await im.conversations()
        assert (page.offline, [c.title for c in page.conversations]) == (True, ["bob"])
        gateway.answers_none = False
        while (await im.conversations()).offline:
            pass  # A busy machine may need more than one try.
        gateway.lag = 1
        page = await im.conversations()
        assert (page.offline, page.unread) == (True, 1), "a copy that lags empties no screen"
        gateway.query_error = Forbidden("no")
        with pytest.raises(Forbidden, match="no"):
            await im.conversations()


async def test_an_older_server_knows_no_mailboxes(gateway: UserGateway) -> None:
    gateway.limits = type(gateway.limits)(queries=0)
    gateway.post("team", "hi")
    async with client(gateway.url) as im:
        await im.connected(10)
        assert (await im.follow("team").next(10)).text == "hi"
        page = await im.conversations()
        assert page.offline
        assert [c.title for c in page.conversations] == ["team"], "what it has read by itself"
        im.typing("team")
        await im.history("team")
    assert m.QUERY not in gateway.log
    assert m.SIGNAL not in gateway.log


async def test_at_most_as_many_queries_as_the_server_takes(gateway: UserGateway) -> None:
    gateway.limits = type(gateway.limits)(queries=3)
    async with client(gateway.url, config=ClientConfig(mailbox=False, drain_ms=0)) as im:
        await im.connected(10)
        gateway.answers_none = True
        asked = [asyncio.create_task(im.unread()) for _ in range(10)]
        await gateway.until(lambda: len(gateway.queries) == 3)
        assert len(im._engine.requests) == 3
        asked[0].cancel()
        await gateway.until(lambda: len(gateway.queries) == 4)
        gateway.answers_none = False
        gateway.cut()
        results = await asyncio.gather(*asked, return_exceptions=True)
        assert all(result.offline for result in results[1:]), results
        assert not (await _online(im)).offline


async def _online(im: Client) -> Any:
    await im.connected(10)
    return await im.unread()


# --- changes --------------------------------------------------------------------------------------


async def test_what_is_hidden_stays_so_when_there_is_nothing_else(
    gateway: UserGateway, store: Path
) -> None:
    gateway.post(TALK, "x", device=BOB)
    async with client(gateway.url, store=store) as im:
        await until(lambda: local_rows(im) == {TALK: 1})
        await im.history(TALK)
        await (await im.hide(TALK)).acked(10)
        assert (await im.conversations(local=True)).conversations == []


async def test_reading_is_seen_at_once_also_offline(gateway: UserGateway, store: Path) -> None:
    gateway.post(TALK, *(str(n) for n in range(20)), device=BOB)
    async with client(gateway.url, store=store) as im:
        await until(lambda: local_rows(im) == {TALK: 20})
    async with client(NOWHERE, store=store) as im:
        sent = await im.mark_read(TALK, 10)
        assert sent.state is SendState.PENDING
        assert (await im.unread()).count == 10
        await im.mark_read(TALK, 4)
        assert local_rows(im) == {TALK: 10}, "it never goes back"
        await im.pin(TALK)
        await im.mute(TALK)
        await im.fold(TALK, "later")
        (found,) = (await im.conversations(label="later")).conversations
        assert (found.pinned, found.muted, found.read_seq, found.pending) == (True, True, 10, 0)
        assert (await im.conversations()).conversations == []
        assert im.labels() == ["later"]
        await im.send(TALK, "as typed")
    async with client(NOWHERE, store=store) as im:
        assert (await im.unread()).count == 10, "it is in the outbox and still seen"
        last = im.outbox(TALK)[-1]
        assert (last.kind, last.body) == (EventKind.MESSAGE, b"as typed")
    async with client(gateway.url, store=store) as im:
        await im.connected(10)
        for pending in im.outbox():
            await pending.acked(10)
            assert (pending.kind, pending.body) == (None, None)
        assert gateway.has_read("alice", TALK) == 10
        await until_async(lambda: _settled(im))
        (found,) = (await im.conversations(label="later")).conversations
        assert (found.unread, found.pinned, found.label) == (10, True, "later")


async def _settled(im: Client) -> bool:
    user = im._engine.user
    user.mailbox.rows()
    return not user.mailbox._pending


async def test_the_total_counts_nothing_twice_while_the_rows_lag(gateway: UserGateway) -> None:
    gateway.post(TALK, "one", "two", device=BOB)
    async with client(gateway.url) as im:
        await until(lambda: local_rows(im) == {TALK: 2})
        gateway.post("direct:alice/carol", "hi", device="carol/pc-00000000")
        await until(lambda: len(local_rows(im)) == 2)
        gateway.lag = 1_000_000
        await (await im.mark_read(TALK, 1)).acked(10)
        assert [(await im.unread()).count for _ in range(2)] == [2, 2]
        gateway.query_error = Overloaded("busy")
        assert await im.unread() == (await im.unread())
        assert (await im.unread()).count == 2
        gateway.query_error, gateway.lag = None, 0
        await until_async(lambda: _settled(im))
        assert (im._engine.user.mailbox.total(), local_rows(im)[TALK]) == (2, 1)


async def test_what_is_refused_is_taken_back(gateway: UserGateway) -> None:
    gateway.post(TALK, "hi", device=BOB)
    async with client(gateway.url) as im:
        await until(lambda: local_rows(im) == {TALK: 1})
        gateway.nack = lambda entry: (Forbidden, 0) if entry[2] == EventKind.MAILBOX else None
        sent = await im.mark_read(TALK, 1)
        assert local_rows(im) == {TALK: 0}
        with pytest.raises(Forbidden):
            await sent.acked(10)
        assert local_rows(im) == {TALK: 1}


async def test_another_device_reads(gateway: UserGateway) -> None:
    gateway.post(TALK, "one", "two", device=BOB)
    async with client(gateway.url) as im, Client(gateway.url, "alice", "pc", config=QUICK) as other:
        await until(lambda: local_rows(im) == local_rows(other) == {TALK: 2})
        await (await other.mark_read(TALK, 2)).acked(10)
        await until(lambda: local_rows(im) == {TALK: 0})
        gateway.post(TALK, "three", device=BOB)
        await until(lambda: local_rows(im) == local_rows(other) == {TALK: 1})
        assert (await im.unread()).count == 1


async def test_hiding_lasts_until_the_next_message(gateway: UserGateway) -> None:
    gateway.post(TALK, "one", device=BOB)
    async with client(gateway.url) as im:
        await until(lambda: local_rows(im) == {TALK: 1})
        await im.hide(TALK)
        assert local_rows(im) == {}
        with pytest.raises(NotFound):
            await im.hide("direct:alice/nobody")
        gateway.post(TALK, "two", device=BOB)
        await until(lambda: local_rows(im) == {TALK: 2})


async def test_messages_that_are_recalled_and_edited(gateway: UserGateway, store: Path) -> None:
    async with client(gateway.url, store=store) as im:
        for text in ("one", "two", "three"):
            await (await im.send(TALK, text)).acked(10)
        await (await im.edit(TALK, 1, "uno")).acked(10)
        await (await im.edit(TALK, 1, "eins")).acked(10)
        await (await im.recall(TALK, 2)).acked(10)
        with pytest.raises(NotFound):
            await (await im.recall(TALK, 99)).acked(10)
        page = await im.history(TALK)
        assert [(e.seq, e.text, e.recalled, e.edited, e.target) for e in page.events] == SHOWN
    async with client(NOWHERE, store=store) as im:
        page = await im.history(TALK)
        assert page.offline
        assert [(e.seq, e.text, e.recalled, e.edited, e.target) for e in page.events] == SHOWN
        assert [(info.session, info.last) for info in await im.sessions()] == [(TALK, None)]
    async with client(gateway.url, "bob") as im:
        await im.connected(10)
        old = await im.history(TALK, before=3)
        assert [(e.text, e.recalled) for e in old.events] == [("eins", False), ("", True)]
        first = await im.follow(TALK).next(10)
        assert (first.text, first.edited, first.body) == ("eins", True, b"one")


SHOWN = [
    (1, "eins", False, True, None), (2, "", True, False, None), (3, "three", False, False, None),
    (4, "uno", False, False, 1), (5, "eins", False, False, 1), (6, "", False, False, 2),
]  # fmt: skip


async def test_what_the_user_deletes_is_shown_on_none_of_his_devices(gateway: UserGateway) -> None:
    gateway.post(TALK, "one", "two", "three", device=BOB)
    async with client(gateway.url) as im, Client(gateway.url, "alice", "pc", config=QUICK) as other:
        await until(lambda: local_rows(other) == {TALK: 3})
        await (await im.delete(TALK, 2)).acked(10)
        assert [e.seq for e in (await im.history(TALK, limit=2)).events] == [1, 3]
        follower = im.follow(TALK)
        assert [(await follower.next(10)).seq for _ in range(2)] == [1, 3]
        await until_async(lambda: _seqs(other, [1, 3]))
        async with Client(gateway.url, "alice", "new", config=QUICK) as new:
            await new.connected(10)
            assert await _seqs(new, [1, 3]), "also on one that comes later"
        assert [e.seq for e in (await client_history(gateway, "bob")).events] == [1, 2, 3]


async def _seqs(im: Client, expected: list[int]) -> bool:
    return [event.seq for event in (await im.history(TALK)).events] == expected


async def client_history(gateway: UserGateway, user: str) -> Any:
    async with client(gateway.url, user) as im:
        await im.connected(10)
        return await im.history(TALK)


async def test_a_mailbox_shows_nothing_of_itself(gateway: UserGateway) -> None:
    gateway.post(TALK, *map(str, range(300)), device=BOB)
    async with client(gateway.url) as im:
        await until(lambda: local_rows(im) == {TALK: 300})
        follower = im.follow("user:alice", after=0)
        with pytest.raises(TimeoutError):
            await follower.next(0.05)
        assert (await im.history("user:alice")).events == []


# --- groups, devices, receipts, signals -----------------------------------------------------------


async def test_groups(gateway: UserGateway, store: Path) -> None:
    async with client(gateway.url, store=store) as im, client(gateway.url, "bob") as bob:
        await (await im.groups.create("climbers", "Climbers", ["bob", "carol"])).acked(10)
        await (await im.groups.role("climbers", "bob", "admin")).acked(10)
        await (await im.groups.title("group:climbers", "The Climbers")).acked(10)
        info = await im.groups.info("climbers")
        assert info is not None
        assert (info.title, info.owner, info.members, info.role) == (
            "The Climbers", "alice", 3, "owner",
        )  # fmt: skip
        first = await im.groups.members("climbers", limit=2)
        assert [(row.user, row.role) for row in first.members] == [
            ("alice", "owner"), ("bob", "admin"),
        ]  # fmt: skip
        rest = await im.groups.members("climbers", first.next)
        assert [row.user for row in rest.members] == ["carol"]
        await (await bob.groups.leave("climbers")).acked(10)
        with pytest.raises(Forbidden):
            await (await bob.groups.title("climbers", "mine")).acked(10)
        with pytest.raises(NotFound):
            await im.groups.info("nobody's")
        with pytest.raises(BadRequest):
            await im.groups.leave("a/b")
        follower = im.follow("group:climbers")
        changes = [(await follower.next(10)).change for _ in range(4)]
        assert [(c.what, c.users) for c in changes if c] == [
            ("create", ["alice", "bob", "carol"]), ("role", ["bob"]), ("title", []),
            ("leave", ["bob"]),
        ]  # fmt: skip
    async with client(NOWHERE, store=store) as im:
        info = await im.groups.info("climbers")
        assert info is not None
        assert (info.title, info.offline) == ("The Climbers", True)
        kept = await im.groups.members("climbers")
        assert (kept.offline, [row.user for row in kept.members]) == (True, ["alice", "bob"])
        assert await im.groups.info("others") is None


async def test_who_may_not_follow_hears_it(gateway: UserGateway) -> None:
    async with client(gateway.url) as im, client(gateway.url, "eve") as eve:
        await (await im.groups.create("g", "G")).acked(10)
        readers = [eve.follow("group:g"), eve.follow("group:g", after=0)]
        for reader in readers:
            with pytest.raises(Forbidden):
                await reader.next(10)
        with pytest.raises(NotFound):
            await eve.follow("group:none").next(10)
        assert eve.status().followed == 0
        await (await im.groups.add("g", "eve")).acked(10)
        assert (await eve.follow("group:g").next(10)).change is not None


async def test_a_group_that_is_followed_moves_in_the_local_list(gateway: UserGateway) -> None:
    async with client(gateway.url) as im:
        await (await im.groups.create("g", "G", ["bob"])).acked(10)
        await im.conversations()
        follower = im.follow("group:g")
        assert (await follower.next(10)).change is not None
        gateway.post("group:g", "hello", device=BOB)
        await (await im.send("group:g", "hi")).acked(10)
        gateway.post("group:g", "so?", device=BOB)
        while (event := await follower.next(10)).text != "so?":
            pass
        row = im._engine.user.mailbox.row("group:g")
        assert row is not None
        assert (row.last_seq, row.preview, row.sender) == (event.seq, "so?", "bob")
        assert (row.unread, row.inputs) == (2, [0, 4, 2, [[1, 1], [3, 3]]])
        assert row == gateway.row("alice", "group:g"), "as the server computes it"


async def test_devices(gateway: UserGateway, store: Path) -> None:
    async with client(gateway.url, store=store) as im:
        await until(lambda: gateway.known_devices.get("alice"))
        (device,) = await im.devices()
        assert f"alice/{device.device}" == im.address
        assert device.about == QUICK.agent
        with pytest.raises(NotFound):
            await (await im.kick("nobody")).acked(10)
    async with client(gateway.url, store=store) as im:
        await im.connected(10)
        await until(lambda: "user:alice" in gateway.peers[0].followed)
        # It was told once: after it there is only the VOID of the kick.
        await until(lambda: gateway.next_n["user:alice", im.address] == 3)
        await (await im.kick(device.device)).acked(10)
        assert await im.devices() == []
        gateway.known_devices["alice"] = {"pad": "a pad"}
        await im.devices()
    async with client(NOWHERE, store=store) as im:
        assert [(device.device, device.about) for device in await im.devices()] == [
            ("pad", "a pad")
        ]


async def test_receipts(gateway: UserGateway) -> None:
    async with client(gateway.url) as im, client(gateway.url, "bob") as bob:
        await (await im.send(TALK, "hi")).acked(10)
        await (await im.send(TALK, "again")).acked(10)
        await (await bob.mark_read(TALK, 1)).acked(10)
        assert (await im.receipts(TALK, 1)).users == ["bob"]
        found = await im.receipts(TALK, 2)
        assert (found.read, found.users, found.offline) == (0, [], False)
        await im.conversation(TALK)
        gateway.query_error = Overloaded("busy")
        found = await im.receipts(TALK, 1)
        assert (found.users, found.delivered, found.offline) == (["bob"], True, True)
        with pytest.raises(RetryableError):
            await im.receipts("group:g", 1)


async def test_what_is_stored_is_reported_by_itself(gateway: UserGateway, store: Path) -> None:
    quick = replace(QUICK, received_ms=5)
    gateway.post(TALK, "one", "two", device=BOB)
    async with (
        client(gateway.url, store=store, config=quick) as im,
        im.follow(TALK) as following,
        client(gateway.url, "bob") as bob,
    ):
        await anext(aiter(following))
        await until_async(lambda: delivered(bob, 2))
        assert await im.who_is_online(TALK) == ["bob"]
        assert (await bob.receipts(TALK, 2)).read == 0
    assert [sent for sent in im.outbox() if sent.session == "user:alice"] == []


async def delivered(im: Client, seq: int) -> bool:
    found = await im.conversation(TALK)
    return found is not None and found.peer_delivered_seq >= seq


async def test_signals_reach_who_follows_and_are_not_kept(gateway: UserGateway) -> None:
    async with client(gateway.url) as im, client(gateway.url, "bob") as bob:
        follower = im.follow(TALK)
        heard = im.signals()
        first = asyncio.create_task(anext(heard))
        await until(lambda: any(TALK in peer.followed for peer in gateway.peers))
        await bob.connected(10)
        bob.typing(TALK)
        assert await asyncio.wait_for(first, 60) == (TALK, "bob", "typing", True)
        bob.here(TALK)
        assert (await anext(heard)).what == "presence"
        assert (im.who_types(TALK), im.who_is_here(TALK)) == (["bob"], ["bob"])
        bob.typing(TALK, False)
        await anext(heard)
        assert im.who_types(TALK) == []
        assert bob.who_is_here(TALK) == [], "not to oneself"
        await heard.aclose()
        follower.close()
    assert gateway.timelines.get(TALK) is None


# --- the store ------------------------------------------------------------------------------------


async def test_a_store_with_values_of_a_later_version_is_usable(
    gateway: UserGateway, store: Path
) -> None:
    later = SqliteStore(store, "alice", "phone")
    await later.open(lambda keys: None, lambda error: None)
    later.keep("conversation", TALK, b"\x91\xa5later")
    await later.close()
    gateway.post(TALK, "hi", device=BOB)
    async with client(gateway.url, store=store) as im:
        await until(lambda: local_rows(im) == {TALK: 1})


async def test_closing_while_the_mailbox_is_awaited(gateway: UserGateway) -> None:
    gateway.answers_none = True
    async with client(gateway.url) as im:
        await gateway.until(lambda: gateway.queries)
        assert im.status().online
        changed = asyncio.create_task(im.list_changed())
        heard = asyncio.create_task(anext(im.signals(), None))
        await asyncio.sleep(0)
    with pytest.raises(ShuttingDown):
        await asyncio.wait_for(changed, 60)
    assert await asyncio.wait_for(heard, 60) is None
    names = [task.get_name() for task in asyncio.all_tasks()]
    assert not [name for name in names if name.startswith("mailbox")]
