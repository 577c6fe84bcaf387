"""Every anomaly by its name: a checker that cannot see a fault is worth nothing.

Each bad history has a good twin that differs from it in one observation only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import pytest

from im_actors.core.facts import pack_request, pack_state
from im_actors.core.model import Event, Record, epoch_start, make_key, make_record, sealed_record
from im_actors.core.model import encode_event as encoded
from im_actors.proof import NAMES, Anomaly, ClientHistory, History, anomalies
from im_actors.proof.anomalies import ANOMALIES_TOLD_MAX
from im_actors.proof.clients import SKIPPED_KEPT_MAX

SESSION = "team"
ALICE = "alice/phone-1"
BOB = "bob/phone-2"
SLOT = 0
DISKS = ("disk-a", "disk-b", "disk-c")
OWNER = "shard-1.1"

Pair = Callable[[bool], ClientHistory]
PAIRS: dict[str, list[tuple[Pair, set[str]]]] = {}
"""name -> functions that make the bad history, or its good twin, and what is found in the bad."""


def fires(name: str, *also: str) -> Callable[[Pair], Pair]:
    def keep(pair: Pair) -> Pair:
        PAIRS.setdefault(name, []).append((pair, {name, *also}))
        return pair

    return keep


def body_of(device: str, n: int) -> bytes:
    return f"{device} {n}".encode()


def shown(seq: int, n: int, device: str = ALICE, kind: int = 1) -> tuple[int, str, int, int, bytes]:
    return (seq, device, n, kind, body_of(device, n) if kind else b"")


def sends(history: ClientHistory, count: int, device: str = ALICE, acked: bool = True) -> None:
    """Numbers 1, 2, 3 … of one device, ACKed at seqs 1, 2, 3 …"""
    for n in range(1, count + 1):
        history.sent(SESSION, device, n, 1, body_of(device, n))
        if acked:
            history.acked(SESSION, device, n, n, 1, 3)


def read(
    history: ClientHistory, *events: tuple[int, str, int, int, bytes], reader: str = "reader"
) -> None:
    for event in events:
        history.delivered(reader, SESSION, *event)


def seen(count: int) -> ClientHistory:
    """A history in which everything was read at the end and by one follower."""
    history = ClientHistory()
    sends(history, count)
    events = [shown(n, n) for n in range(1, count + 1)]
    read(history, *events)
    history.final_read(SESSION, events)
    return history


class Cluster:
    """Three disks, an owner, and a log that all of them get at once unless told otherwise."""

    def __init__(self, acked: bool = True) -> None:
        self.history = History(slots=1, watches_disks=True)
        self.lsn = 0
        self.seq = 0
        self.counter = 0
        self.records: list[Record] = []
        self.start()

    def start(self, epoch: int = 1, key: int | None = None, disks: Iterable[str] = DISKS) -> None:
        self.keep(epoch_start(SLOT, self.lsn + 1, epoch, self.key() if key is None else key), disks)

    def key(self) -> int:
        self.counter += 1
        return make_key(1_700_000_000_000, SLOT, self.counter)

    def write(
        self,
        n: int,
        device: str = ALICE,
        seq: int | None = None,
        epoch: int = 1,
        key: int | None = None,
        body: bytes | None = None,
        disks: Iterable[str] = DISKS,
    ) -> Record:
        self.seq = self.seq + 1 if seq is None else seq
        content = body_of(device, n) if body is None else body
        key = self.key() if key is None else key
        event = Event(SESSION, self.seq, key, 1, device, n, content)
        return self.keep(make_record(SLOT, self.lsn + 1, epoch, [encoded(event)]), disks)

    def keep(self, record: Record, disks: Iterable[str] = DISKS) -> Record:
        self.lsn = record.lsn
        self.records.append(record)
        for disk in disks:
            self.durable(disk, record)
        return record

    def durable(self, disk: str, record: Record) -> None:
        lsn, epoch, payload, checksum = record
        self.history.durable(disk, SLOT, lsn, epoch, payload, checksum)

    def commit(self, epoch: int = 1, by: str = OWNER, disks: Iterable[str] = DISKS) -> None:
        self.history.committed(by, SLOT, epoch, self.lsn, disks)

    def end(self, commit_lsn: int | None = None) -> History:
        for disk in DISKS:
            self.history.final_log(disk, SLOT, self.records, commit_lsn)
        return self.history


def two_messages() -> Cluster:
    """Sent, durable, committed and ACKed."""
    cluster = Cluster()
    for n in (1, 2):
        cluster.history.sent(SESSION, ALICE, n, 1, body_of(ALICE, n))
        cluster.write(n)
        cluster.commit()
        cluster.history.acked(SESSION, ALICE, n, n, 1, 3)
    return cluster


# -- what clients see ------------------------------------------------------------------------------


@fires("lost-write")
def lost_in_what_is_read_at_the_end(bad: bool) -> ClientHistory:
    history = ClientHistory()
    sends(history, 3)
    history.final_read(SESSION, [shown(1, 1), shown(2, 2), shown(3, 3)][: 2 if bad else 3])
    return history


@fires("lost-write")
def lost_for_one_of_two_readers(bad: bool) -> ClientHistory:
    history = seen(2)
    history.final_read(SESSION, [shown(1, 1), shown(2, 2)][: 1 if bad else 2], "another")
    return history


@fires("lost-write")
def lost_in_the_log(bad: bool) -> ClientHistory:
    history = History(slots=1)
    cluster = Cluster()
    history.sent(SESSION, ALICE, 1, 1, body_of(ALICE, 1))
    history.acked(SESSION, ALICE, 1, 1, 1, 3)
    cluster.write(1)
    for disk in DISKS:
        history.final_log(disk, SLOT, cluster.records[: 1 if bad else 2])
    return history


@fires("lost-write")
def nothing_was_read_at_the_end(bad: bool) -> ClientHistory:
    history = ClientHistory()
    sends(history, 1)
    if not bad:
        history.final_read(SESSION, [shown(1, 1)])
    return history


@fires("unseen")
def a_follower_stops_too_early(bad: bool) -> ClientHistory:
    history = seen(2)
    read(history, *[shown(1, 1), shown(2, 2)][: 1 if bad else 2], reader="slow")
    return history


@fires("unseen")
def a_follower_that_never_got_anything(bad: bool) -> ClientHistory:
    history = seen(2)
    history.following("idle", SESSION)
    if not bad:
        history.left("idle", SESSION)
    return history


@fires("duplicate")
def one_message_at_two_places(bad: bool) -> ClientHistory:
    history = seen(2)
    read(history, shown(3, 1 if bad else 3))
    if not bad:
        history = seen(3)
    return history


@fires("duplicate")
def one_place_given_twice(bad: bool) -> ClientHistory:
    history = seen(2)
    read(history, shown(1, 1), *([shown(1, 1)] if bad else []), shown(2, 2), reader="another")
    return history


@fires("duplicate", "reorder")
def one_message_twice_in_the_log(bad: bool) -> ClientHistory:
    cluster = two_messages()
    cluster.history.sent(SESSION, ALICE, 3, 1, body_of(ALICE, 3))
    cluster.write(2 if bad else 3)
    cluster.commit()
    return cluster.end()


@fires("wrong-content")
def an_owner_that_did_something_else_than_was_asked(bad: bool) -> ClientHistory:
    history = ClientHistory()
    history.sent(SESSION, ALICE, 1, 4, pack_request("add", "bob"))
    told = "remove" if bad else "add"
    changed = pack_state(told, ["bob"], [("m/bob", 0, b"member")])
    history.final_read(SESSION, [(1, ALICE, 1, 4, changed)])
    return history


@fires("wrong-content")
def a_message_in_the_place_of_a_change(bad: bool) -> ClientHistory:
    history = ClientHistory()
    history.sent(SESSION, ALICE, 1, 4, pack_request("add", "bob"))
    changed = pack_state("add", ["bob"], [])
    history.final_read(SESSION, [(1, ALICE, 1, 1 if bad else 4, changed)])
    return history


@fires("wrong-content")
def what_nobody_sent_and_no_server_wrote(bad: bool) -> ClientHistory:
    history = ClientHistory()
    history.final_read(SESSION, [shown(1, 1, ALICE if bad else "*", 6)])
    return history


@fires("inconsistent-offsets")
def not_where_its_ack_says(bad: bool) -> ClientHistory:
    history = ClientHistory()
    history.sent(SESSION, ALICE, 1, 1, body_of(ALICE, 1))
    history.acked(SESSION, ALICE, 1, 7 if bad else 1, 1, 3)
    history.final_read(SESSION, [shown(1, 1)])
    return history


@fires("inconsistent-offsets")
def read_first_and_acked_elsewhere(bad: bool) -> ClientHistory:
    history = ClientHistory()
    history.sent(SESSION, ALICE, 1, 1, body_of(ALICE, 1))
    history.final_read(SESSION, [shown(1, 1)])
    history.acked(SESSION, ALICE, 1, 7 if bad else 1, 1, 3)
    return history


@fires("inconsistent-offsets")
def two_acks_for_one_place(bad: bool) -> ClientHistory:
    history = ClientHistory()
    sends(history, 1)
    history.sent(SESSION, BOB, 1, 1, body_of(BOB, 1))
    history.acked(SESSION, BOB, 1, 1 if bad else 2, 1, 3)
    history.final_read(SESSION, [shown(1, 1), shown(2, 1, BOB)])
    return history


@fires("inconsistent-offsets")
def an_ack_for_anothers_place(bad: bool) -> ClientHistory:
    history = ClientHistory()
    for device in (ALICE, BOB):
        history.sent(SESSION, device, 1, 1, body_of(device, 1))
    read(history, shown(1, 1))
    history.acked(SESSION, BOB, 1, 1 if bad else 2, 1, 3)
    read(history, shown(2, 1, BOB))
    history.final_read(SESSION, [shown(1, 1), shown(2, 1, BOB)])
    return history


@fires("inconsistent-offsets")
def two_readers_got_two_orders(bad: bool) -> ClientHistory:
    history = ClientHistory()
    for device in (ALICE, BOB):
        history.sent(SESSION, device, 1, 1, body_of(device, 1))
    one, other = (shown(1, 1), shown(2, 1, BOB)), (shown(1, 1, BOB), shown(2, 1))
    history.final_read(SESSION, one)
    read(history, *(other if bad else one))
    return history


@fires("ack-mismatch")
def acked_at_two_places(bad: bool) -> ClientHistory:
    history = seen(1)
    history.acked(SESSION, ALICE, 1, 2 if bad else 1, 2, 3)
    return history


@fires("ack-mismatch", "lost-write")
def acked_and_never_sent(bad: bool) -> ClientHistory:
    history = ClientHistory()
    if not bad:
        history.sent(SESSION, ALICE, 1, 1, body_of(ALICE, 1))
    history.acked(SESSION, ALICE, 1, 1, 1, 3)
    if not bad:
        history.final_read(SESSION, [shown(1, 1)])
    return history


@fires("reorder")
def a_later_number_at_an_earlier_place(bad: bool) -> ClientHistory:
    history = ClientHistory()
    sends(history, 2, acked=False)
    history.final_read(SESSION, [shown(1, 2 if bad else 1), shown(2, 1 if bad else 2)])
    return history


@fires("reorder")
def numbers_not_in_the_order_of_sending(bad: bool) -> ClientHistory:
    history = ClientHistory()
    for n in (2, 1) if bad else (1, 2):
        history.sent(SESSION, ALICE, n, 1, body_of(ALICE, n))
    return history


@fires("reorder")
def a_number_missing_in_the_log(bad: bool) -> ClientHistory:
    cluster = two_messages()
    for n in (3, 4):
        cluster.history.sent(SESSION, ALICE, n, 1, body_of(ALICE, n))
    cluster.write(4 if bad else 3)
    cluster.commit()
    return cluster.end()


@fires("poll-skip")
def a_follower_jumps_over_a_message(bad: bool) -> ClientHistory:
    history = seen(3)
    events = [shown(1, 1), shown(3, 3)] if bad else [shown(1, 1), shown(2, 2), shown(3, 3)]
    history.left("another", SESSION)
    read(history, *events, reader="another")
    return history


@fires("poll-skip")
def a_hole_that_turns_out_to_be_a_message(bad: bool) -> ClientHistory:
    history = ClientHistory()
    sends(history, 3, acked=False)
    history.sent(SESSION, ALICE, 2, 0, b"")
    read(history, shown(1, 1), shown(3, 3))
    history.polled(None, SESSION, 3, 0, [shown(1, 1), shown(2, 2, kind=int(bad)), shown(3, 3)])
    return history


@fires("poll-skip")
def a_hole_that_nothing_explains(bad: bool) -> ClientHistory:
    history = ClientHistory()
    sends(history, 3, acked=False)
    history.refused(SESSION, ALICE, 2)
    read(history, shown(1, 1), shown(3, 3))
    if not bad:
        read(history, shown(1, 1), shown(2, 2, kind=0), shown(3, 3), reader="another")
    return history


@fires("poll-skip")
def a_page_with_a_hole(bad: bool) -> ClientHistory:
    history = seen(3)
    page = [shown(2, 2), shown(3, 3)]
    history.polled("disk-a", SESSION, 3, 1, page[1:] if bad else page)
    return history


@fires("poll-skip")
def a_page_without_a_void_that_it_should_show(bad: bool) -> ClientHistory:
    history = ClientHistory()
    sends(history, 3, acked=False)
    history.sent(SESSION, ALICE, 2, 0, b"")
    read(history, shown(1, 1), shown(2, 2, kind=0), shown(3, 3))
    history.polled(None, SESSION, 3, 0, [shown(1, 1), shown(3, 3)], voids_shown=bad)
    return history


@fires("poll-skip")
def a_page_that_shows_no_voids_has_a_hole(bad: bool) -> ClientHistory:
    history = ClientHistory()
    sends(history, 3, acked=False)
    history.sent(SESSION, ALICE, 2, 0, b"")
    history.polled(None, SESSION, 3, 0, [shown(1, 1), shown(3, 3)], voids_shown=False)
    history.polled(None, SESSION, 3, 0, [shown(1, 1), shown(2, 2, kind=int(bad)), shown(3, 3)])
    return history


@fires("nonmonotonic-poll", "poll-skip")
def a_follower_goes_back(bad: bool) -> ClientHistory:
    history = seen(3)
    order = (1, 3, 2) if bad else (1, 2, 3)
    read(history, *(shown(n, n) for n in order), reader="another")
    return history


@fires("nonmonotonic-poll")
def a_source_goes_back(bad: bool) -> ClientHistory:
    history = seen(3)
    history.polled("disk-a", SESSION, 3, 2, [shown(3, 3)])
    history.polled("disk-a" if bad else None, SESSION, 2, 1, [shown(2, 2)])
    return history


@fires("nonmonotonic-poll")
def a_disk_goes_back_without_having_dropped_the_slot(bad: bool) -> ClientHistory:
    cluster = two_messages()
    cluster.history.polled("disk-a", SESSION, 2)
    if not bad:
        cluster.history.dropped("disk-a", SLOT)
    cluster.history.polled("disk-a", SESSION, 1)
    return cluster.end()


@fires("precommitted-read")
def delivered_before_its_commit(bad: bool) -> ClientHistory:
    cluster = two_messages()
    cluster.history.sent(SESSION, ALICE, 3, 1, body_of(ALICE, 3))
    cluster.write(3)
    if not bad:
        cluster.commit()
    read(cluster.history, shown(1, 1), shown(2, 2), shown(3, 3))
    cluster.commit()
    return cluster.end()


@fires("precommitted-read")
def a_head_above_the_commit_point(bad: bool) -> ClientHistory:
    cluster = two_messages()
    cluster.history.polled(None, SESSION, 3 if bad else 2)
    return cluster.end()


@fires("precommitted-read")
def read_and_not_there_at_the_end(bad: bool) -> ClientHistory:
    history = seen(2)
    history.sent(SESSION, ALICE, 3, 1, body_of(ALICE, 3))
    if bad:
        read(history, shown(3, 3))
    return history


@fires("wrong-content")
def other_bytes(bad: bool) -> ClientHistory:
    history = ClientHistory()
    history.sent(SESSION, ALICE, 1, 1, "e\u0301".encode())
    history.final_read(SESSION, [(1, ALICE, 1, 1, ("\u00e9" if bad else "e\u0301").encode())])
    return history


@fires("wrong-content")
def other_bytes_for_the_second_reader(bad: bool) -> ClientHistory:
    history = seen(1)
    history.delivered("another", SESSION, 1, ALICE, 1, 1, b"x" if bad else body_of(ALICE, 1))
    return history


@fires("wrong-content")
def invented(bad: bool) -> ClientHistory:
    history = ClientHistory()
    sends(history, 1)
    if not bad:
        history.sent(SESSION, BOB, 1, 1, body_of(BOB, 1))
    history.final_read(SESSION, [shown(1, 1), shown(2, 1, BOB)])
    return history


@fires("wrong-content")
def a_void_that_nobody_asked_for(bad: bool) -> ClientHistory:
    history = ClientHistory()
    sends(history, 1, acked=False)
    if not bad:
        history.sent(SESSION, ALICE, 1, 0, b"")
    read(history, shown(1, 1, kind=0))
    return history


@fires("wrong-content")
def a_record_without_its_checksum(bad: bool) -> ClientHistory:
    cluster = two_messages()
    last = cluster.records[-1]
    damaged = last._replace(payload=last.payload[:-1] + b"x") if bad else last
    cluster.history.final_log("disk-a", SLOT, [*cluster.records[:-1], damaged])
    for disk in DISKS[1:]:
        cluster.history.final_log(disk, SLOT, cluster.records)
    return cluster.history


@fires("wrong-content")
def a_record_is_written_without_its_checksum(bad: bool) -> ClientHistory:
    cluster = two_messages()
    record = epoch_start(SLOT, 4, 2, cluster.key())
    cluster.keep(record._replace(checksum=1) if bad else record)
    cluster.commit(2)
    return cluster.end()


@fires("wrong-content")
def a_record_that_holds_no_events(bad: bool) -> ClientHistory:
    cluster = two_messages()
    cluster.keep(sealed_record(SLOT, cluster.lsn + 1, 1, b"\x91\xa1x"))
    if not bad:
        cluster.lsn -= 1
        cluster.records.pop()
    cluster.commit()
    return cluster.end()


@fires("wrong-content")
def a_message_in_the_place_of_a_refused_one(bad: bool) -> ClientHistory:
    history = ClientHistory()
    sends(history, 1, acked=False)
    if not bad:
        history.refused(SESSION, ALICE, 1)
    read(history, shown(1, 1, kind=0))
    return history


@fires("refused-write")
def refused_and_then_there(bad: bool) -> ClientHistory:
    history = ClientHistory()
    sends(history, 1, acked=False)
    history.refused(SESSION, ALICE, 1)
    read(history, shown(1, 1, kind=int(bad)))
    return history


@fires("refused-write")
def there_and_then_refused(bad: bool) -> ClientHistory:
    history = ClientHistory()
    sends(history, 1, acked=False)
    read(history, shown(1, 1))
    if bad:
        history.refused(SESSION, ALICE, 1)
    return history


@fires("reused-number")
def two_messages_under_one_number(bad: bool) -> ClientHistory:
    history = seen(1)
    history.sent(SESSION, ALICE, 1 if bad else 2, 1, b"another")
    return history


@fires("reused-number")
def a_message_for_a_number_that_was_withdrawn(bad: bool) -> ClientHistory:
    history = seen(1)
    history.sent(SESSION, ALICE, 1, 0, b"")
    history.sent(SESSION, ALICE, 1, int(bad), b"")
    return history


# -- what disks hold -------------------------------------------------------------------------------


@fires("gap")
def a_seq_missing_in_the_log(bad: bool) -> ClientHistory:
    cluster = two_messages()
    cluster.history.sent(SESSION, ALICE, 3, 1, body_of(ALICE, 3))
    cluster.write(3, seq=4 if bad else 3)
    cluster.commit()
    return cluster.end()


@fires("key-back")
def a_message_key_goes_back(bad: bool) -> ClientHistory:
    cluster = two_messages()
    cluster.history.sent(SESSION, ALICE, 3, 1, body_of(ALICE, 3))
    cluster.write(3, key=make_key(1_600_000_000_000, SLOT, 0) if bad else None)
    cluster.commit()
    return cluster.end()


@fires("key-back")
def an_epoch_starts_with_an_old_key(bad: bool) -> ClientHistory:
    cluster = two_messages()
    cluster.start(2, make_key(1_600_000_000_000, SLOT, 0) if bad else None)
    cluster.commit(2)
    return cluster.end()


@fires("key-back")
def a_message_comes_before_the_key_of_its_epoch(bad: bool) -> ClientHistory:
    cluster = two_messages()
    cluster.history.sent(SESSION, ALICE, 3, 1, body_of(ALICE, 3))
    cluster.start(2, make_key(1_800_000_000_000, SLOT, 0) if bad else None)
    cluster.write(3, epoch=2)
    cluster.commit(2)
    return cluster.end()


@fires("epoch-back")
def an_old_epoch_follows_a_new_one(bad: bool) -> ClientHistory:
    cluster = two_messages()
    cluster.history.sent(SESSION, ALICE, 3, 1, body_of(ALICE, 3))
    cluster.start(2)
    cluster.write(3, epoch=1 if bad else 2)
    cluster.commit(2)
    return cluster.end()


@fires("epoch-back")
def a_view_goes_back(bad: bool) -> ClientHistory:
    cluster = two_messages()
    cluster.history.view_changed(SLOT, (2, "a"), (1 if bad else 3, "b"))
    return cluster.end()


@fires("two-owners")
def two_incarnations_serve(bad: bool) -> ClientHistory:
    cluster = two_messages()
    cluster.history.owner(SLOT, 1 if bad else 2, "shard-2.1")
    cluster.history.owner(SLOT, 1, OWNER)
    return cluster.end()


@fires("two-owners")
def two_incarnations_commit(bad: bool) -> ClientHistory:
    cluster = two_messages()
    cluster.commit(1, "shard-2.1" if bad else OWNER)
    return cluster.end()


@fires("two-owners")
def a_view_changes_hands_in_one_epoch(bad: bool) -> ClientHistory:
    cluster = two_messages()
    cluster.history.view_changed(SLOT, (2, "a"), (2, "b" if bad else "a"))
    return cluster.end()


@fires("replica-divergence")
def a_record_is_missing_at_the_end(bad: bool) -> ClientHistory:
    cluster = two_messages()
    cluster.history.final_log("disk-a", SLOT, cluster.records[:1] + cluster.records[1 + bad :])
    for disk in DISKS[1:]:
        cluster.history.final_log(disk, SLOT, cluster.records)
    return cluster.history


@fires("replica-divergence")
def a_record_differs_at_the_end(bad: bool) -> ClientHistory:
    cluster = two_messages()
    other = make_record(SLOT, 2, 2, [encoded(Event(SESSION, 1, 9, 1, BOB, 1, b""))])
    second = other if bad else cluster.records[1]
    cluster.history.final_log("disk-a", SLOT, [cluster.records[0], second, cluster.records[2]])
    for disk in DISKS[1:]:
        cluster.history.final_log(disk, SLOT, cluster.records)
    return cluster.history


@fires("replica-divergence")
def a_record_is_on_no_disk_at_the_end(bad: bool) -> ClientHistory:
    history = History(slots=1)
    records = Cluster().records
    for disk in DISKS:
        history.final_log(disk, SLOT, records, 2 if bad else 1)
    return history


@fires("replica-divergence")
def two_contents_under_one_epoch(bad: bool) -> ClientHistory:
    cluster = two_messages()
    event = encoded(Event(SESSION, 3, 9, 1, BOB, 1, b""))
    cluster.durable("disk-a", make_record(SLOT, 4, 1, [event]))
    cluster.durable("disk-b", make_record(SLOT, 4, 1 if bad else 2, [event, event]))
    return cluster.end(3)


@fires("replica-divergence")
def somebody_believes_in_another_record(bad: bool) -> ClientHistory:
    cluster = two_messages()
    other = make_record(SLOT, 3, 2, [encoded(Event(SESSION, 2, 9, 1, BOB, 1, b""))])
    cluster.durable("disk-d", other if bad else cluster.records[2])
    cluster.history.believed("disk-d", SLOT, 3)
    return cluster.end()


@fires("replica-divergence")
def another_record_comes_by_backfill(bad: bool) -> ClientHistory:
    cluster = two_messages()
    cluster.history.believed("disk-d", SLOT, 3)
    other = make_record(SLOT, 3, 2, [encoded(Event(SESSION, 2, 9, 1, BOB, 1, b""))])
    cluster.durable("disk-d", other if bad else cluster.records[2])
    return cluster.end()


@fires("replica-divergence")
def a_slow_owner_claims_another_record(bad: bool) -> ClientHistory:
    cluster = two_messages()
    other = make_record(SLOT, 3, 2, [encoded(Event(SESSION, 2, 9, 1, BOB, 1, b""))])
    disks = ("disk-d", "disk-e", "disk-f")
    for disk in disks:
        cluster.durable(disk, other if bad else cluster.records[2])
    cluster.commit(2, "shard-2.1", disks)
    return cluster.end()


@fires("replica-divergence")
def a_new_view_of_members_that_had_another_record(bad: bool) -> ClientHistory:
    cluster = two_messages()
    other = make_record(SLOT, 3, 2, [encoded(Event(SESSION, 2, 9, 1, BOB, 1, b""))])
    disks = ("disk-d", "disk-e", "disk-f")
    for disk in disks:
        cluster.durable(disk, other)
    if not bad:
        cluster.history.cut("disk-f", SLOT, 2)  # It will get what is committed by backfill.
    cluster.commit(3, "shard-3.1", disks)
    return cluster.end()


@fires("replica-divergence")
def cut_below_what_is_committed(bad: bool) -> ClientHistory:
    cluster = two_messages()
    cluster.history.believed("disk-a", SLOT, 3 - (not bad))
    cluster.history.cut("disk-a", SLOT, 2)
    return cluster.end()


@fires("commit-below-three")
def an_ack_that_names_two_copies(bad: bool) -> ClientHistory:
    history = seen(1)
    history.acked(SESSION, ALICE, 1, 1, 1, 2 if bad else 3)
    return history


@fires("commit-below-three")
def committed_on_two_disks(bad: bool) -> ClientHistory:
    cluster = two_messages()
    cluster.start(2, disks=DISKS[: 2 if bad else 3])
    cluster.commit(2)
    return cluster.end()


@fires("commit-below-three")
def committed_by_two_members(bad: bool) -> ClientHistory:
    cluster = two_messages()
    cluster.start(2)
    cluster.commit(2, disks=DISKS[: 2 if bad else 3])
    return cluster.end()


@fires("commit-below-three")
def believed_before_it_was_committed(bad: bool) -> ClientHistory:
    cluster = two_messages()
    cluster.start(2)
    if not bad:
        cluster.commit(2)
    cluster.history.believed("disk-a", SLOT, 4)
    return cluster.end()


@fires("commit-below-three")
def acked_before_it_was_committed(bad: bool) -> ClientHistory:
    cluster = two_messages()
    cluster.history.sent(SESSION, ALICE, 3, 1, body_of(ALICE, 3))
    cluster.write(3)
    if not bad:
        cluster.commit()
    cluster.history.acked(SESSION, ALICE, 3, 3, 1, 3)
    cluster.commit()
    return cluster.end()


@fires("commit-below-three")
def on_two_disks_at_the_end(bad: bool) -> ClientHistory:
    cluster = two_messages()
    for disk in DISKS[: 2 if bad else 3]:
        cluster.history.final_log(disk, SLOT, cluster.records)
    return cluster.history


# -- the tests -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_a_checker_fires_on_its_bad_history_and_not_on_the_good_twin(name: str) -> None:
    assert PAIRS.get(name), f"no history shows that {name} is found"
    for pair, found in PAIRS[name]:
        good, bad = pair(False), pair(True)
        good.finish()
        bad.finish()
        assert good.counts == {}, (pair.__name__, good.anomalies)
        assert bad.counts.keys() == found, (pair.__name__, bad.anomalies)


def test_every_name_is_explained() -> None:
    explained = [
        line.split()[0] for line in str(anomalies.__doc__).splitlines() if line[:4] == "    "
    ]
    assert tuple(explained) == NAMES


def test_a_takeover_a_cut_tail_a_spare_and_a_slow_owner_are_fine() -> None:
    cluster = two_messages()
    history = cluster.history
    for n in (3, 4):
        history.sent(SESSION, ALICE, n, 1, body_of(ALICE, n))
    lost = cluster.write(3, disks=["disk-a"])
    cluster.lsn, cluster.seq = 3, 2
    cluster.records.remove(lost)
    # disk-c is away; a spare takes its place and has the old records later.
    members = ("disk-a", "disk-b", "disk-d")
    history.cut("disk-a", SLOT, 3)
    cluster.start(2, disks=members)
    history.owner(SLOT, 2, "shard-2.1")
    cluster.commit(2, "shard-2.1", members)
    history.believed("disk-d", SLOT, 4)
    cluster.write(3, epoch=2, disks=members)
    cluster.commit(2, "shard-2.1", members)
    history.acked(SESSION, ALICE, 3, 3, 2, 3)
    history.committed(OWNER, SLOT, 1, 3, DISKS)
    for record in cluster.records[:3]:
        cluster.durable("disk-d", record)
    for disk in members:
        history.final_log(disk, SLOT, cluster.records, 4)
    assert history.finish() == []


def test_of_two_records_that_all_members_had_the_one_that_stands_is_committed() -> None:
    cluster = two_messages()
    history = cluster.history
    for epoch in (2, 3):
        cluster.lsn = 3
        cluster.start(epoch)
    old, new = cluster.records[-2:]
    for disk in DISKS:
        history.cut(disk, SLOT, 3)
        cluster.durable(disk, old)
    cluster.records.remove(new)
    cluster.commit(4, "shard-2.1")
    assert cluster.end().finish() == []


def test_an_anomaly_is_told_at_once_and_counts_once() -> None:
    told: list[Anomaly] = []
    history = ClientHistory(told.append)
    sends(history, 1)
    for _ in range(3):
        history.acked(SESSION, ALICE, 1, 2, 1, 3)
    assert [str(anomaly) for anomaly in told] == [
        f"ack-mismatch: message 1 of {ALICE} in {SESSION!r} was ACKed at seq 1 and at seq 2"
    ]
    assert (told[0].session, told[0].key) == (SESSION, (ALICE, 1))
    assert history.counts == {"ack-mismatch": 1}


def test_two_acks_for_one_place_are_found_at_once() -> None:
    history = ClientHistory()
    sends(history, 1)
    sends(history, 1, BOB)
    assert history.counts == {"inconsistent-offsets": 1}


@pytest.mark.parametrize("acked_first", [True, False])
def test_an_ack_that_contradicts_what_was_read_is_found_at_once(acked_first: bool) -> None:
    history = ClientHistory()
    sends(history, 1, acked=False)
    calls = [lambda: sends(history, 1, BOB), lambda: read(history, shown(1, 1))]
    for call in calls if acked_first else reversed(calls):
        call()
    assert history.counts == {"inconsistent-offsets": 1}


def test_the_words_are_bounded_and_the_count_is_not() -> None:
    history = ClientHistory()
    sends(history, ANOMALIES_TOLD_MAX + 10)
    assert len(history.finish()) == ANOMALIES_TOLD_MAX
    assert history.counts == {"lost-write": ANOMALIES_TOLD_MAX + 10}


def test_a_jump_is_bounded() -> None:
    history = ClientHistory()
    history.sent(SESSION, ALICE, 1, 1, body_of(ALICE, 1))
    read(history, shown(10**15, 1))
    history.finish()
    assert history.counts == {"poll-skip": SKIPPED_KEPT_MAX}


def test_a_follower_may_begin_later() -> None:
    history = seen(3)
    history.following("late", SESSION, after=2)
    read(history, shown(3, 3), reader="late")
    assert history.finish() == []


def test_logs_that_are_only_read_at_the_end() -> None:
    """As those of real processes are: the last record is on all three, and none knows it yet."""
    cluster = Cluster()
    history = History(slots=1)
    for n in (1, 2):
        history.sent(SESSION, ALICE, n, 1, body_of(ALICE, n))
        history.acked(SESSION, ALICE, n, n, 1, 3)
        read(history, shown(n, n))
        cluster.write(n)
    tail = cluster.write(3)
    for disk in DISKS:
        records = [record for record in cluster.records if disk == "disk-a" or record is not tail]
        history.final_log(disk, SLOT, records, 2)
    assert history.finish() == []


def test_what_clients_write_to_their_own_mailboxes_by_themselves_is_no_anomaly() -> None:
    events = [(1, ALICE, 1, 5, b"device")]
    history = ClientHistory()
    history.final_read("user:alice", events)
    assert not history.finish()
    watched = ClientHistory()
    watched.sent("user:alice", BOB, 1, 5, b"read")
    watched.final_read("user:alice", events)
    assert {anomaly.name for anomaly in watched.finish()} == {"wrong-content"}
