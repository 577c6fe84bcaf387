"""Against a plain list: what an event is, as far back as the newest records go."""

from hypothesis import given
from hypothesis import strategies as st

from im_actors.core.model import Event, encode_event, epoch_start, make_key, make_record
from im_actors.core.recent import RecentRecords
from im_actors.core.rules import EventHead

TIME_MS = 1_700_000_000_000
SESSIONS = st.sampled_from(["a", "b", "c"])


def event(session: str, seq: int, counter: int) -> Event:
    key = make_key(TIME_MS + counter, 5, 0)
    return Event(session, seq, key, 1 + counter % 3, f"u/{counter}", counter + 1, b"x" * counter)


@given(st.lists(st.lists(SESSIONS, min_size=1, max_size=6), max_size=8), st.integers(1, 1_500))
def test_what_fits_is_found_and_nothing_else(batches: list[list[str]], bytes_max: int) -> None:
    recent, seqs, counter = RecentRecords(bytes_max), dict.fromkeys("abc", 0), 0
    records: list[tuple[int, list[Event]]] = []
    for lsn, batch in enumerate(batches, 1):
        events = []
        for session in batch:
            seqs[session] += 1
            counter += 1
            events.append(event(session, seqs[session], counter))
        record = make_record(5, lsn, 1, [encode_event(event) for event in events])
        recent.keep(record)
        records.append((len(record.payload), events))
    expected: dict[tuple[str, int], EventHead] = {}
    for size, events in reversed(records):
        bytes_max -= size
        if bytes_max < 0:
            break
        for e in events:
            expected[e.session, e.seq] = EventHead(e.seq, e.kind, e.device, e.time_ms)
    for session, last in seqs.items():
        for seq in range(last + 2):
            assert recent.head(session, seq) == expected.get((session, seq))


def test_the_start_of_an_epoch_holds_no_events() -> None:
    recent = RecentRecords(10_000)
    recent.keep(epoch_start(5, 1, 1, make_key(TIME_MS, 5, 0)))
    assert recent.head("a", 1) is None
