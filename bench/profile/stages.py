"""Samples and CPU become microseconds per message and stage.

How much CPU a thread used is known exactly. Where in its code it used it is estimated: of the
samples in which it does not wait, each stage has its share.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from bench.profile.sampling import Sample
from bench.profile.threads import NAMED, OTHERS

OTHER = "other"

Table = Mapping[str, tuple[str, ...]]
"""The functions of each stage, by how their names begin. Of a stack the innermost function that is
named decides."""

NETWORK: Table = {
    "read": ("uv__read", "_SelectorSocketTransport._read_ready"),
    "write": ("UVStream__try_write", "FramedProtocol._flush", "FramedProtocol.send"),
    "decode": ("FrameDecoder.",),
    "receive": ("FramedProtocol.data_received", "LinkConnection."),
    "loop": ("uv_run", "uv__", "loop_", "UV", "Loop_", "Handle_", "BaseEventLoop."),
}
"""What every loop does. Here messages are also freed, when their receiver is done: ``receive``."""

LOOPS: dict[str, Table] = {
    "gateway": {
        "check": ("check_send", "_check_entr", "TokenBucket.", "ClientConnection._send_received"),
        "route": ("Router.submit", "Router._flush", "Peers.", "ShardPeer.", "slot_of"),
        "answer": ("Router.results", "Router.flush_answers", "ClientConnection.flush_answers"),
        "push": ("Followers.", "event_seq"),
    },
    "shard": {
        "decode": ("read_inside", "_read_one", "_read_columns", "_records"),
        "gather": ("ShardNode._submitted", "ShardNode._begin_rounds", "Rounds."),
        "admit": ("SlotOwner._submitted", "Serving.submit", "Serving._admit", "SessionState."),
        "cut record": ("Serving.cut_record", "Serving._next_events", "SlotOwner._flush",
                       "SlotOwner._append", "sealed_record", "pack_record"),
        "checksum": ("record_checksum", "body_checksum"),
        "pack": ("pack_inside", "_columns_of", "_append_columns", "pack_frame", "in_frames",
                 "_request_bytes"),
        "commit": ("SlotOwner._replica_answered", "SlotOwner._appended", "SlotOwner._commit_",
                   "SlotOwner._publish", "Serving.commit", "Serving._commit"),
        "tell commit": ("ShardNode._say_what_is_untold", "SlotOwner._tell_commit"),
        "answer": ("ShardNode._answered",),
        "push": ("ShardNode._published",),
        "timers": ("ShardNode._set_alarms", "ShardNode._plan_tick", "ShardNode._tick", "Alarms.",
                   "SlotOwner.deadline_ms"),
    },
    "replica": {
        "decode": ("read_inside", "_read_one", "_read_columns", "_records"),
        "check": ("Replica.", "SlotLog.", "record_intact", "ReplicaNode._handle"),
        "checksum": ("record_checksum", "body_checksum"),
        "hand over": ("ReplicaNode._flush", "ThreadPoolExecutor.submit"),
        "answer": ("ReplicaNode._written", "ReplicaNode._carry_out", "pack_inside",
                   "_columns_of"),
        "journal": ("ReplicaStorage.", "Journal.", "Database.", "_put_rows", "_put_meta"),
        "apply queue": ("ApplyQueue.", "ReplicaNode._apply", "ReplicaNode._applied"),
    },
}  # fmt: skip
"""What the loop of each kind of actor does, beside ``NETWORK``."""

THREADS: dict[str, Table] = {
    "journal": {
        "rows": ("Journal.", "_put_rows", "_put_meta", "record_checksum"),
        "commit": ("Database.transaction",),
        "trim": ("Journal.trim", "Journal._delete"),
        "checkpoint": ("Journal.checkpoint", "Database._checkpoint", "Database.checkpoint"),
    },
    "history": {
        "decode": ("History._index_of", "record_index", "record_checksum"),
        "merge": ("History.stage", "IndexFile.stage", "IndexFile._enter", "IndexFile._begin",
                  "Run."),
        "index": ("IndexFile.", "session_guard", "run_guard", "device_guard", "_run_rows",
                  "_put_sessions", "_put_devices"),
        "months": ("MonthFile.",),
        "commit": ("Database.transaction",),
        "checkpoint": ("Database._checkpoint", "Database.checkpoint"),
    },
}  # fmt: skip
"""What a replica's storage threads do. Their stages are named after them."""

WAITS = (
    "epoll_wait", "epoll_pwait", "poll", "ppoll", "select", "pthread_cond_wait", "sem_wait",
    "pthread_cond_timedwait", "PyThread_acquire_lock_timed", "fsync", "fdatasync",
    "EpollSelector.select", "Condition.wait",
)  # fmt: skip
"""For events, for a lock or the interpreter, for the disk."""
WAIT_DEPTH = 3
"""What a wait calls in the C library often has no name."""


def waits(functions: Sequence[str]) -> bool:
    """Whether this stack is one of a thread that waits."""
    return not functions or any(name in WAITS for name in functions[-WAIT_DEPTH:])


def stage_of(table: Table, functions: Sequence[str]) -> str:
    """The stage of one stack. The longest name that fits a function is the one that counts."""
    for function in reversed(functions):
        fitting = [
            (len(prefix), stage)
            for stage, prefixes in table.items()
            for prefix in prefixes
            if function.startswith(prefix)
        ]
        if fitting:
            return max(fitting)[1]
    return OTHER


def fold(table: Table, samples: Iterable[Sample]) -> Counter[str]:
    """How often each stage was seen at work."""
    seen: Counter[str] = Counter()
    for sample in samples:
        if not waits(sample.functions):
            seen[stage_of(table, sample.functions)] += sample.seen
    return seen


def samples_at_work(samples: Iterable[Sample], names: Mapping[int, str]) -> dict[str, int]:
    """From how many samples the stages of each thread are known."""
    found: Counter[str] = Counter()
    for sample in samples:
        name = names.get(sample.thread, "")
        if name in NAMED and not waits(sample.functions):
            found[name] += sample.seen
    return dict(found)


def loop_table(kind: str) -> Table:
    """All stages of the loop of a kind of actor."""
    own = LOOPS[kind]
    return {name: own.get(name, ()) + NETWORK.get(name, ()) for name in {**own, **NETWORK}}


def stages(
    kind: str,
    cpu_us: Mapping[str, float],
    samples: Sequence[Sample],
    names: Mapping[int, str],
) -> dict[str, float]:
    """A kind's microseconds by stage, in total as much as ``cpu_us``, which is by thread.

    ``samples`` are of one of its processes, ``names`` those of its threads by id.
    """
    result: dict[str, float] = {}
    for thread, us in cpu_us.items():
        if thread == OTHERS:
            result[thread] = us
            continue
        table = loop_table(kind) if thread == "loop" else THREADS[thread]
        prefix = "" if thread == "loop" else f"{thread}: "
        seen = fold(table, (sample for sample in samples if names.get(sample.thread) == thread))
        total = seen.total() or 1
        for stage, count in (seen or {OTHER: 1}).items():
            result[prefix + stage] = us * count / total
    return result
