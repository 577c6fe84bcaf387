"""Samples and CPU become microseconds per message and stage.

How much CPU a thread used is known exactly. Where in its code an event loop used it is estimated
from samples: a loop that is not in any Python function either waits or works in C (reads from
sockets, calls back), which samples do not tell apart. So the time in Python is counted, and what is
left of the thread's CPU is ``native``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from bench.profile.sampling import Sample
from bench.profile.threads import Look

NATIVE = "native"
OTHER = "other"

STAGES: dict[str, dict[str, tuple[str, ...]]] = {
    "gateway": {
        "decode": ("FrameDecoder.",),
        "check": ("check_send", "_check_entr", "TokenBucket.", "ClientConnection._send_received"),
        "route": ("Router.submit", "Router._flush", "Peers.", "ShardPeer.", "slot_of"),
        "answer": ("Router.results", "Router.flush_answers", "ClientConnection.flush_answers"),
        "push": ("Followers.", "event_seq"),
        "write": ("FramedProtocol._flush", "FramedProtocol.send"),
    },
    "shard": {
        "decode": ("FrameDecoder.", "read_inside", "_read_one", "_records"),
        "gather": ("ShardNode._submitted", "ShardNode._begin_rounds", "Rounds."),
        "admit": ("SlotOwner._submitted", "Serving.submit", "Serving._admit", "SessionState."),
        "cut record": ("Serving.cut_record", "SlotOwner._flush", "SlotOwner._append", "make_rec"),
        "checksum": ("record_checksum", "body_checksum"),
        "pack": ("pack_inside", "pack_frame", "in_frames", "_request_bytes", "pack_record"),
        "commit": ("SlotOwner._replica_answered", "SlotOwner._appended", "SlotOwner._commit_",
                   "SlotOwner._publish", "Serving.commit", "Serving._commit"),
        "tell commit": ("ShardNode._say_what_is_untold", "SlotOwner._tell_commit"),
        "answer": ("ShardNode._answered",),
        "push": ("ShardNode._published",),
        "timers": ("ShardNode._set_alarms", "ShardNode._plan_tick", "ShardNode._tick", "Alarms.",
                   "SlotOwner.deadline_ms"),
        "write": ("FramedProtocol._flush", "FramedProtocol.send"),
    },
    "replica": {
        "decode": ("FrameDecoder.", "read_inside", "_read_one", "_records"),
        "check": ("Replica.", "SlotLog.", "record_intact", "ReplicaNode._handle"),
        "checksum": ("record_checksum", "body_checksum"),
        "hand over": ("ReplicaNode._flush", "ThreadPoolExecutor.submit"),
        "answer": ("ReplicaNode._written", "ReplicaNode._carry_out", "pack_inside"),
        "apply queue": ("ApplyQueue.", "ReplicaNode._apply", "ReplicaNode._applied"),
        "write": ("FramedProtocol._flush", "FramedProtocol.send"),
    },
}  # fmt: skip
"""Per kind of actor: the functions of each stage, by how their qualified names begin. Of a stack
the innermost function that is named here decides."""

HISTORY_STAGES: dict[str, tuple[str, ...]] = {
    "decode": ("History._decode", "record_events", "decode_event", "record_checksum"),
    "merge": ("History._merge", "StateFile.touch", "StateFile.device", "DeviceEntry."),
    "states": ("StateFile.", "session_guard", "device_guard"),
    "months": ("MonthFile.",),
    "commit": ("Database.transaction", "Database._checkpoint", "Database.checkpoint"),
}
"""The same for the thread that writes history. In a sample its waits for an fsync and for the
interpreter look like work: the stages in which it does either seem larger than they are."""

WHOLE_THREADS = {"journal": "journal", "ray": "ray"}
"""Threads that are one stage: the journal's does little else than wait for its fsync."""
WAITING = (
    "Thread.run", "_worker", "Condition.wait", "Event.wait", "EpollSelector.select",
    "BaseEventLoop.run_forever", "Worker.main_loop",
)  # fmt: skip
"""A thread whose innermost function is one of these waits, or works in C."""

Table = Mapping[str, tuple[str, ...]]


def stage_of(table: Table, functions: Sequence[str]) -> str | None:
    """The stage of one stack; None when no Python runs."""
    if not functions or functions[-1].startswith(WAITING):
        return None
    for function in reversed(functions):
        for stage, prefixes in table.items():
            if function.startswith(prefixes):
                return stage
    return OTHER


def fold(table: Table, samples: Iterable[Sample]) -> Counter[str | None]:
    """How often each stage was seen, and None: no Python ran."""
    seen: Counter[str | None] = Counter()
    for sample in samples:
        seen[stage_of(table, sample.functions)] += sample.seen
    return seen


def divide(
    cpu_us: float, seen: Mapping[str | None, int], runnable_share: float = 0.0
) -> dict[str, float]:
    """A thread's CPU by stage.

    ``runnable_share`` of the time that was sampled the thread ran or waited for a core; samples
    count both alike, so Python's part of its CPU is Python's part of this time. 0: it works in
    Python only.
    """
    python = {stage: count for stage, count in seen.items() if stage is not None}
    total, in_python = sum(seen.values()), sum(python.values())
    if not in_python:
        return {NATIVE: cpu_us}
    share = min(1.0, in_python / total / runnable_share) if runnable_share else 1.0
    divided = {stage: cpu_us * share * count / in_python for stage, count in python.items()}
    return divided if share == 1.0 else {**divided, NATIVE: cpu_us * (1 - share)}


def stages(
    kind: str,
    cpu_us: Mapping[str, float],
    pid: int,
    samples: Sequence[Sample],
    sampled: Look,
) -> dict[str, float]:
    """A kind's microseconds by stage, in total as much as ``cpu_us``, which is by thread.

    ``samples`` are of process ``pid``, and ``sampled`` is what all threads used meanwhile.
    """
    result = {WHOLE_THREADS[name]: us for name, us in cpu_us.items() if name in WHOLE_THREADS}
    for name, prefix, table in (("loop", "", STAGES[kind]), ("history", "apply: ", HISTORY_STAGES)):
        if name not in cpu_us:
            continue
        thread, runnable_share = _thread(sampled, pid, name)
        seen = fold(table, (sample for sample in samples if sample.thread == thread))
        parts = divide(cpu_us[name], seen, runnable_share if name == "loop" else 0.0)
        result |= {prefix + stage: us for stage, us in parts.items()}
    return result


def _thread(sampled: Look, pid: int, name: str) -> tuple[int, float]:
    """The id of a process's thread, and for which share of the time it was ready to run."""
    found = [
        (time.cpu_us, time.waited_us, thread)
        for (of, thread), time in sampled.threads.items()
        if of == pid and time.name == name
    ]
    if not found:
        return 0, 0.0
    # Threads that a library makes for it have the same name, and next to none of the CPU.
    cpu_us, waited_us, thread = max(found)
    return thread, (cpu_us + waited_us) / (sampled.at_s * 1e6)
