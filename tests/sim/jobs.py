"""Batch messages, for the simulation: services that order them, and what has to come of it.

Who has got what is said by the committed events of the recipients' notice channels; how a batch
stands, by those of the batch. The model shares no code with the rules and the executor under test.
"""

from __future__ import annotations

from random import Random
from typing import TYPE_CHECKING, Any, NamedTuple

import msgpack

from im_actors.core.batch_run import BatchSettings, ChannelSettings
from im_actors.core.model import Event, EventKind

if TYPE_CHECKING:
    from tests.sim.world import World

SHARE = 0.6
"""Of the runs with mailboxes."""
PREFIX = "batch:"
SENDER, AIDE = "svc", "aide"
SERVICES = frozenset({SENDER, AIDE})
STATES = ("open", "running", "paused", "done", "cancelling", "cancelled", "recalling", "recalled")
BUSY = ("running", "cancelling", "recalling")
NOT_SENT = 1
NEXT = {
    ("start", "open"): "running",
    ("start", "running"): "running",
    ("pause", "running"): "paused",
    ("pause", "paused"): "paused",
    ("resume", "paused"): "running",
    ("resume", "running"): "running",
    ("cancel", "open"): "cancelled",
    ("cancel", "running"): "cancelling",
    ("cancel", "paused"): "cancelling",
    ("cancel", "cancelling"): "cancelling",
    ("cancel", "cancelled"): "cancelled",
    ("recall", "running"): "recalling",
    ("recall", "paused"): "recalling",
    ("recall", "done"): "recalling",
    ("recall", "cancelling"): "recalling",
    ("recall", "cancelled"): "recalling",
    ("recall", "recalling"): "recalling",
    ("recall", "recalled"): "recalled",
}
ENDINGS = ((), ("cancel",), ("cancel",), ("recall",), ("cancel", "recall"))
STEPS = (
    *(f"batch_{what}" for what in ("create", "recipients", "start", "pause", "resume")),
    "batch_cancel",
    "batch_recall",
    *(f"batch_is_{state}" for state in ("done", "cancelled", "recalled")),
    "batch_not_sent",
    "batch_fenced",
    "batch_relayed",
    "batch_refused",
)
"""What has to happen in a long run."""


def settings(rng: Random) -> BatchSettings:
    """Mostly so slow that much happens while a batch is told."""
    slow = ChannelSettings(rng.choice([2, 4, 10]), rng.choice([1, 3, 256]))
    fast = ChannelSettings(rng.choice([8, 30, 40_000]), rng.choice([2, 8, 2_048]))
    waits = {"answer_ms": rng.choice([300, 2_000, 8_000]), "read_ms": rng.choice([100, 2_000])}
    return BatchSettings(slow, fast, **waits)


class Order:
    """A batch as its service wants it."""

    def __init__(self, number: int, users: list[str], rng: Random) -> None:
        self.session = f"{PREFIX}job-{number}"
        self.device = f"{SENDER}/{self.session}"
        self.channel = rng.choice(["daily", "high"])
        self.notice = rng.choice(["system", "interaction"])
        self.dry = rng.random() < 0.1
        text = f"news {number} {rng.randrange(10**6)} "
        self.content = (text * 400 if rng.random() < 0.1 else text).encode()
        users = rng.sample(users, rng.randint(1, len(users)))
        most = rng.choice([1, 1, 2, 5])
        self.chunks: list[list[str]] = []
        while users:
            size = rng.randint(1, most)
            self.chunks.append(users[:size])
            users = users[size:]
        self.total = rng.choice([0, sum(map(len, self.chunks))])
        self.endings = rng.choice(ENDINGS)
        self.ordered = False
        self.uploaded = 0
        """Chunks that were submitted, since the last look at how many are there."""

    @property
    def body(self) -> bytes:
        """Of each recipient's event."""
        return self.content if len(self.content) <= 4_096 else self.content[:400] + "…".encode()

    def notice_of(self, user: str) -> str:
        return f"notice:{self.notice}/{user}"


class Standing(NamedTuple):
    """A batch at one moment."""

    state: str | None = None
    chunks: tuple[tuple[str, ...], ...] = ()
    progress: tuple[Any, ...] = (0, 0, 0, 0, False, 0, 0, 0)
    """Chunks, sent, refused, unsent, settled, recall chunks, recalled, unrecalled."""


class JobModel:
    """One batch by committed events alone. ``told`` is who has got what, in all batches."""

    def __init__(self, order: Order, told: dict[tuple[str, str], dict[int, Event]]) -> None:
        self.order = order
        self.told = told
        self.standings = [Standing()]
        self.never: set[str] = set()
        """Who is said not to get it, ever."""

    @property
    def standing(self) -> Standing:
        return self.standings[-1]

    # -- what is refused -----------------------------------------------------------------------

    def refuses(self, seq: int, user: str, kind: int, body: bytes, now_ms: int) -> bool:
        """Whether what is asked for has to be refused after the event ``seq``."""
        what, args = msgpack.unpackb(body)[:2]
        return self._refuses(self.standings[seq], user, what, args)

    def _refuses(self, job: Standing, user: str, what: str, args: list[Any]) -> bool:
        if user not in SERVICES:
            return True
        if what == "create":
            return job.state is not None
        if job.state is None or (what in ("recipients", "start") and user != SENDER):
            return True
        if what == "recipients":
            number, users = args
            known = job.chunks[number] if number < len(job.chunks) else tuple(users)
            return job.state != "open" or number > len(job.chunks) or known != tuple(users)
        if what == "start" and (not job.chunks or self._incomplete(job)):
            return True
        return (what, job.state) not in NEXT or (what == "recall" and self.order.dry)

    def _incomplete(self, job: Standing) -> bool:
        return self.order.total not in (0, sum(map(len, job.chunks)))

    # -- what is committed ---------------------------------------------------------------------

    def take_in(self, event: Event, asked: bytes) -> str | None:
        """The next committed event of the batch; what is wrong with it."""
        job, wrong = self.standing, None
        if event.kind == EventKind.NOTE:
            job, wrong = self._progressed(job, event)
        elif event.kind != EventKind.VOID:
            job, wrong = self._changed(job, event, asked)
        self.standings.append(job)
        return wrong

    def _changed(self, job: Standing, event: Event, asked: bytes) -> tuple[Standing, str | None]:
        what, args = msgpack.unpackb(asked)
        user = event.device.partition("/")[0]
        if self._refuses(job, user, what, args):
            return job, f"{what} of {user} is taken when it stands as {job}"
        after = job
        if what == "create":
            after = job._replace(state="open")
        elif what == "recipients":
            if args[0] == len(job.chunks):
                after = job._replace(chunks=(*job.chunks, tuple(args[1])))
        else:
            assert job.state is not None
            after = job._replace(state=NEXT[what, job.state])
            if after.state == "cancelled" and job.state == "open":
                after = after._replace(progress=(*job.progress[:4], True, *job.progress[5:]))
        return after, self._wrong_rows(job, after, event)

    def _wrong_rows(self, before: Standing, job: Standing, event: Event) -> str | None:
        """What the event's rows say otherwise than the model."""
        rows = {key: value for key, _, value in msgpack.unpackb(event.body)[2]}
        if ("b" in rows) is not (job[:2] != before[:2] or job.state is None):
            return f"seq {event.seq} says {rows.keys()}, it stood as {before} and does as {job}"
        return self.wrong_standing(job, rows.get("b"), rows.get("p"))

    def wrong_standing(
        self, job: Standing, row: bytes | None, progress: bytes | None
    ) -> str | None:
        """What rows of the batch say otherwise than the model; None: nothing is said."""
        order = self.order
        if row is not None:
            found = msgpack.unpackb(row)[1:-1]
            assert job.state is not None
            state, count = STATES.index(job.state), sum(map(len, job.chunks))
            expected = [state, SENDER, order.channel, order.notice, order.dry, order.total]
            if found != [*expected, len(job.chunks), count]:
                return f"the batch is {found}, expected {expected}, {job}"
        if progress is not None and tuple(msgpack.unpackb(progress)[1:]) != job.progress:
            return f"progress is {msgpack.unpackb(progress)}, expected {job}"
        return None

    # -- progress ------------------------------------------------------------------------------

    def _progressed(self, job: Standing, event: Event) -> tuple[Standing, str | None]:
        _, (recall, done, count), facts = msgpack.unpackb(event.body)
        rows = {key: value for key, _, value in facts}
        if done != job.progress[5 if recall else 0] or job.state in (None, "open"):
            return job, f"progress from {done} on, {count} chunks, of {job}"
        tell = self._recalled if recall else self._sent
        after, wrong = tell(job, done, count, rows)
        return after, wrong or self._wrong_rows(job, after, event)

    def _sent(
        self, job: Standing, done: int, count: int, rows: dict[str, bytes]
    ) -> tuple[Standing, str | None]:
        sent, unsent = 0, 0
        for number in range(done, done + count):
            failed = failures(rows.get(f"f/{number:08x}"))
            for position, user in enumerate(job.chunks[number]):
                wrong = self._wrong_outcome(user, failed.get(position))
                if wrong:
                    return job, wrong
            unsent += len(failed)
            sent += len(job.chunks[number]) - len(failed)
        chunks, was_sent, refused, was_unsent, _, *recalls = job.progress
        settled = msgpack.unpackb(rows["p"])[5]
        if settled:
            if job.state in ("running", "paused") and done + count != len(job.chunks):
                return job, f"is settled after {done + count} chunks, and stands as {job}"
            for users in job.chunks[done + count :]:
                self.never.update(users)
        elif done + count == len(job.chunks):
            return job, "all is done, and not settled"
        progress = (chunks + count, was_sent + sent, refused, was_unsent + unsent, settled)
        after = job._replace(progress=(*progress, *recalls))
        if settled and job.state in ("running", "paused", "cancelling"):
            after = after._replace(state="cancelled" if job.state == "cancelling" else "done")
        elif settled and job.state == "recalling" and not chunks + count:
            after = after._replace(state="recalled")
        return after, None

    def _wrong_outcome(self, user: str, code: int | None) -> str | None:
        """Of one recipient: what is said of him has to be so by now."""
        got = self._event(user, 1)
        if code is None:
            if not self.order.dry and got is None:
                return f"{user} is said to have got it, and has not"
            return None
        if code != NOT_SENT or got is not None:
            return f"{user} is said not to have got it ({code}), and his event is {got}"
        self.never.add(user)
        return None

    def _recalled(
        self, job: Standing, done: int, count: int, rows: dict[str, bytes]
    ) -> tuple[Standing, str | None]:
        if not job.progress[4] or job.state != "recalling":
            return job, f"recalls when it stands as {job}"
        number = 0
        for chunk in job.chunks[done : done + count]:
            for user in chunk:
                got, gone = self._event(user, 1), self._event(user, 2)
                if got is not None and gone is None:
                    return job, f"{user} is said to be without it, and has it"
                number += gone is not None
        *sent, chunks, recalled, unrecalled = job.progress
        after = job._replace(progress=(*sent, chunks + count, recalled + number, unrecalled))
        if chunks + count == job.progress[0]:
            after = after._replace(state="recalled")
        return after, None

    def _event(self, user: str, n: int) -> Event | None:
        """The recipient's message (n 1) or its recall (2), if he has it."""
        event = self.told.get((self.order.notice_of(user), self.order.device), {}).get(n)
        return None if event is None or event.kind == EventKind.VOID else event

    # -- what recipients have ------------------------------------------------------------------

    def told_one(self, user: str, event: Event) -> str | None:
        """An event of this batch's device has committed in a notice channel; what is wrong."""
        job, order = self.standing, self.order
        listed = {name for users in job.chunks for name in users}
        if user not in listed or event.session != order.notice_of(user):
            return f"{user} gets it in {event.session!r}, and is not on the list"
        if event.kind == EventKind.VOID:
            return None
        if order.dry or job.state in (None, "open"):
            return f"{user} gets it when it stands as {job}, dry: {order.dry}"
        if event.n == 1:
            if user in self.never or job.progress[4]:
                return f"{user} gets it, and it was said that nobody does any more: {job}"
            right = event.kind == EventKind.MESSAGE and event.body == order.body
            return None if right else f"{user} gets {event}"
        got = self._event(user, 1)
        right = event.n == 2 and event.kind == EventKind.RECALL and got is not None
        if not right or "recall" not in job.state:
            return f"{user} gets {event} when it stands as {job}, after {got}"
        assert got is not None
        target = msgpack.unpackb(event.body)[1][0]
        return None if target == got.seq else f"{user}: {target} is recalled instead of {got.seq}"

    def wrong_end(self) -> str | None:
        """When all has come to rest: exactly one each, or what was said of him."""
        job = self.standing
        for number, users in enumerate(job.chunks):
            for user in users:
                got, gone = self._event(user, 1) is not None, self._event(user, 2) is not None
                if got and self.order.dry:
                    return f"{user} got it from a dry run"
                if job.state == "done" and got is self.order.dry:
                    return f"{user} of a batch that is done: {got}"
                if job.state in ("cancelled", "recalled") and not self.order.dry:
                    said = number < job.progress[0] and user not in self.never
                    if got is not said:
                        return f"{user} of chunk {number} has it: {got}, and it was said: {said}"
                if (gone and not got) or (job.state == "recalled" and gone is not got):
                    return f"{user} has got it: {got}; it was taken back: {gone}"
        return None


def failures(value: bytes | None) -> dict[int, int]:
    """(position -> code) of a chunk's row."""
    if value is None:
        return {}
    _, flat = msgpack.unpackb(value)
    return dict(zip(flat[::2], flat[1::2], strict=True))


class Jobs:
    """All batches of a run: who orders them, and what was committed of them."""

    def __init__(self, world: World, rng: Random) -> None:
        self.world = world
        self.settings = settings(rng)
        self.told: dict[tuple[str, str], dict[int, Event]] = {}
        """(notice channel, device of a batch) -> n -> event."""
        self.users = [f"r{number}" for number in range(rng.choice([4, 12, 30]))]
        orders = [Order(number, self.users, rng) for number in range(rng.randint(1, 3))]
        self.models = {order.session: JobModel(order, self.told) for order in orders}
        self._by_device = {order.device: self.models[order.session] for order in orders}
        self.active = rng.random() < SHARE
        if not self.active:
            self.models, self._by_device = {}, {}

    def start(self) -> None:
        """Whoever is on a list may get the message, or a VOID in its place."""
        for model in self.models.values():
            order, sent = model.order, self.world.history.sent
            for user in [user for users in order.chunks for user in users]:
                session = order.notice_of(user)
                sent(session, order.device, 1, int(EventKind.MESSAGE), order.body)
                sent(session, order.device, 1, int(EventKind.VOID), b"")

    # -- what services ask for -----------------------------------------------------------------

    def desks(self, rng: Random) -> list[tuple[str, dict[str, int]]]:
        """(service, how much it asks for of which batch) of each of their devices."""
        if not self.active:
            return []
        writes = {
            session: 2 * len(model.order.chunks) + rng.randint(10, 40)
            for session, model in self.models.items()
        }
        desks = [(SENDER, writes)]
        if rng.random() < 0.5:
            desks.append((AIDE, {session: rng.randint(1, 15) for session in self.models}))
        return desks

    def request(self, user: str, session: str, rng: Random) -> bytes | None:
        """What a service asks next: the list, chunk after chunk, and then this and that; None: it
        waits and sees."""
        model = self.models[session]
        order, job = model.order, model.standing
        if user == SENDER and rng.random() < 0.95:
            if job.state is None and (not order.ordered or rng.random() < 0.05):
                order.ordered, order.uploaded = True, 0
                args = [order.content, order.channel, order.notice, order.total, order.dry]
                return _asked("create", args)
            if job.state in (None, "open"):
                return self._upload(order, job, rng)
        if job.state in (None, "open") and rng.random() < 0.9:
            return None
        return _asked(self._choice(order, job, rng), [])

    def _upload(self, order: Order, job: Standing, rng: Random) -> bytes | None:
        """The next chunk; when all were submitted, what is not there yet; then begin."""
        if order.uploaded >= len(order.chunks):
            if len(job.chunks) == len(order.chunks):
                return _asked("start", [])
            if rng.random() < 0.9:
                return None
            order.uploaded = len(job.chunks)
        number = order.uploaded
        order.uploaded += 1
        return _asked("recipients", [number, order.chunks[number]])

    @staticmethod
    def _choice(order: Order, job: Standing, rng: Random) -> str:
        often = 0.03 if job.state in (None, "open") else 0.4
        if order.endings and rng.random() < often:
            return rng.choice(order.endings)
        return rng.choice(["start", "pause", "resume", "resume", "resume"])

    # -- what is committed ---------------------------------------------------------------------

    def committed(self, event: Event) -> str | None:
        """An event of a notice channel."""
        model = self._by_device.get(event.device)
        if model is None:
            return f"{event.device} sends {event}"
        user = event.session.partition("/")[2]
        wrong = model.told_one(user, event)
        self.told.setdefault((event.session, event.device), {})[event.n] = event
        if event.kind == EventKind.MESSAGE:
            # From here on it is known what may be taken back.
            recall = msgpack.packb([event.seq])
            kind = int(EventKind.RECALL)
            self.world.history.sent(event.session, event.device, 2, kind, recall)
        return wrong

    def met(self, before: Standing, model: JobModel, event: Event) -> None:
        """Count what a batch's event was."""
        after, met = model.standing, self.world.met
        if event.kind == EventKind.NOTE and after.progress[3] > before.progress[3]:
            met("batch_not_sent")
        if event.kind == EventKind.BATCH:
            met(f"batch_{msgpack.unpackb(event.body)[0]}")
        if after.state != before.state:
            met(f"batch_is_{after.state}")

    def unsettled(self) -> str | None:
        """What goes on still."""
        for session, model in self.models.items():
            if model.standing.state in BUSY:
                return f"{session} is {model.standing}"
        shards = [shard.batches for shard in self.world.shards if shard.running and shard.batches]
        running = sum(batches.status()["batches_active"] for batches in shards)
        paused = sum(model.standing.state == "paused" for model in self.models.values())
        if running > paused:
            return f"{running} batches are looked after, {paused} are paused"
        return None

    def finish(self) -> None:
        """Everybody has what it says, and every member's tables say so."""
        for session, model in self.models.items():
            slot = self.world.slot_of(session)
            if wrong := model.wrong_end():
                self.world.fail("wrong-batch", f"{session}: {wrong}", slot)
            for member in self.world.store.views[slot].members:
                facts = self.world.replicas[member.replica].disk.facts.get(session, {})
                rows = {key: fact.value for key, fact in facts.items()}
                wrong = model.wrong_standing(model.standing, rows.get("b"), rows.get("p"))
                if wrong or (model.standing.state is None) is ("b" in rows):
                    self.world.fail("wrong-facts", f"{member}: {session}: {wrong}", slot)


def _asked(what: str, args: list[Any]) -> bytes:
    return bytes(msgpack.packb([what, args]))
