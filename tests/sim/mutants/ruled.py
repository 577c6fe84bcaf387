"""Design 9 and 5.4: what an owner decides by rules rests on facts that it knows."""

from tests.sim.mutants.modules import KNOWLEDGE, OWNER, SERVING
from tests.sim.mutation import Edit, mutant

_LACKS = "keys = [key for key in needs.keys if key not in self.facts]"
_SETTLED = "        if lsn <= applied_lsn:\n"
_COMMITTED = "if state.last_seq == state.committed_seq:"

_RAISE_FLOOR = "        self._floor_lsn = max(self._floor_lsn, forgotten_lsn)\n"

RULED = (
    mutant(
        "facts-not-replayed",
        "5.4: a new owner takes the facts of the log's end, which the tables do not have yet",
        Edit(SERVING, "            if index.changes:\n", "            if False:\n"),
    ),
    mutant(
        "loaded-facts-win",
        "9: of one key the fact of the newest event holds, whatever the tables say",
        Edit(
            KNOWLEDGE,
            _LACKS,
            "keys = list(needs.keys) if any(key not in self.facts for key in needs.keys) else []",
        ),
        Edit(KNOWLEDGE, "if fact.seq >= seqs.get(fact.key, 0):", "if True:"),
    ),
    mutant(
        "unknown-is-absent",
        "5.4, I9: what is not known is loaded before anything is decided by it",
        Edit(
            SERVING,
            "            if any(lacking):\n                return lacking\n",
            "            state.know().loaded(lacking.keys, ())\n"
            "            state.know().events.update(dict.fromkeys(lacking.events))\n",
        ),
    ),
    mutant(
        "sends-behind-are-dropped",
        "9: what comes while a send waits for facts is decided on after it",
        Edit(SERVING, "self.waiting[state.name] += waiting[position:]", "pass"),
    ),
    mutant(
        "facts-of-any-age",
        "5.4: facts come from tables that have applied what was not replayed",
        Edit(OWNER, "floor, of = self._floor_lsn, (session,)", "floor, of = 0, (session,)"),
        # The member that is furthest is asked first: it has to be silent.
        faults=("slow_load=0.8", "slow_apply=1", "crash_shard=1", "needless_take=0.3"),
    ),
    mutant(
        "forgotten-facts-of-any-age",
        "5.4: forgotten facts are loaded from tables that have what they were forgotten with",
        Edit(OWNER, _RAISE_FLOOR, ""),
        # The member that has applied most must be slow to answer, and one that lags asked then.
        known=16,
        faults=("slow_load=0.8", "slow_apply=1"),
    ),
    mutant(
        "forgets-facts-before-they-are-applied",
        "5.4: facts are forgotten only when the tables hold their events",
        Edit(KNOWLEDGE, _SETTLED, "        if True:\n"),
        Edit(OWNER, _RAISE_FLOOR, ""),
        known=44,
    ),
    mutant(
        "forgets-uncommitted-facts",
        "5.4: facts of events that have not committed are not forgotten",
        Edit(
            KNOWLEDGE,
            "[key for key, said in self._seqs.items() if said <= seq]",
            "list(self._seqs)",
        ),
    ),
    mutant(
        "index-has-the-changed-body",
        "9: a resend is compared with what was sent, and not with what the owner made of it",
        Edit(
            SERVING,
            "made(state, (session, seq, device, n, checksum), key",
            "made(state, (session, seq, device, n, crc32(body, kind)), key",
        ),
    ),
    mutant(
        "refusal-uses-up-the-number",
        "9: a send that is refused leaves its number free",
        Edit(
            SERVING,
            "            case Refuse(error):\n",
            "            case Refuse(error):\n"
            "                from im_actors.core.sessions import DeviceState\n\n"
            "                its = state.devices.setdefault(device, DeviceState())\n"
            "                its.add(send.n, state.last_seq, crc32(body, kind))\n",
        ),
    ),
    mutant(
        "refusal-is-taken-back",
        "P6: a late copy of what was refused is refused too, whatever the rules say by then",
        Edit(SERVING, "        if self.refused:\n", "        if False:\n"),
    ),
    mutant(
        "refusal-before-commit",
        "5.2.4, I7: a refusal, or that a note says nothing new, is told when what it rests on has"
        " committed",
        Edit(SERVING, _COMMITTED, "if True:"),
    ),
    mutant(
        "recent-event-is-absent",
        "5.4, I9: that there is no such event say only tables that have come so far",
        Edit(OWNER, "if not answer.seq and lookup.floor_lsn < last_lsn:", "if False:"),
        faults=("slow_load=0.8", "slow_apply=1"),
    ),
    mutant(
        "late-absence-is-believed",
        "5.4, I9: an answer from before tables had to come so far says nothing later on",
        Edit(OWNER, "            lookup.number = self._next_lookup()\n", ""),
        faults=("slow_load=0.8", "slow_apply=1"),
        known=117,
    ),
    mutant(
        "event-to-come-is-absent",
        "I9: that an event is not there yet says nothing later on",
        Edit(SERVING, "                events.clear()\n", ""),
        known=244,
    ),
    mutant(
        "changes-not-in-the-index",
        "9: the index of a record names the events that change their session's state",
        Edit(SERVING, "        if self.changes_open:\n", "        if False:\n"),
        Edit(SERVING, "if (changes, postponed) != (", "if (self.changes_open, postponed) != ("),
    ),
)
