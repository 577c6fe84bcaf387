"""Design 1 and 8: what the client's own machines owe to the promises P1, P3 and P5."""

from tests.sim.mutants.modules import INBOX, OUTBOX
from tests.sim.mutation import Edit, mutant

CLIENTS = (
    mutant(
        "sent-before-stored",
        "P1: a send is on the client's own disk before the network is touched",
        Edit(
            OUTBOX,
            "if row.state is SendState.SAVING or n >= floor + window:",
            "if n >= floor + window:",
        ),
    ),
    mutant(
        "deleted-when-sent",
        "P1: a row leaves the outbox only on an ACK",
        Edit(
            OUTBOX,
            "            effects.append(SendRows(batch))\n",
            "            effects.append(SendRows(batch))\n"
            "            effects.append(DeleteRows([(row.session, row.n) for row in batch]))\n",
        ),
    ),
    mutant(
        "unknown-is-refused",
        "P6: what may yet succeed is never reported as refused",
        Edit(
            OUTBOX,
            "case RequestError() if not isinstance(row.error, Unauthenticated):",
            "case RequestError() | RetryableError():",
        ),
    ),
    mutant(
        "refusal-without-a-void",
        "7: a refused send's number is taken by a VOID, so that later ones go on",
        Edit(
            OUTBOX,
            "        effects.append(StoreRow(row.row, replaces=row.row.n))\n\n"
            "    def _void_refused",
            "        effects.append(Refuse(row.row.session, row.row.n, row.refusal))\n"
            "        effects.append(DeleteRows([(row.row.session, row.row.n)]))\n"
            "        self._drop(lane, row)\n"
            "        self._retire(lane)\n\n"
            "    def _void_refused",
        ),
    ),
    mutant(
        "refused-before-the-void-is-stored",
        "P6: a refusal is told when the VOID that seals it is on disk",
        Edit(
            OUTBOX,
            "        effects.append(StoreRow(row.row, replaces=row.row.n))\n\n"
            "    def _void_refused",
            "        effects.append(Refuse(row.row.session, row.row.n, row.refusal))\n"
            "        row.refusal = None\n"
            "        effects.append(StoreRow(row.row, replaces=row.row.n))\n\n"
            "    def _void_refused",
        ),
        faults=("refusal=0.2", "slow_save=1", "crash_client=0.5"),
    ),
    mutant(
        "numbers-start-anew",
        "P3: a device never gives one number twice, also after a restart",
        Edit(OUTBOX, "        self._next_n.update(event.next_n)\n", ""),
    ),
    mutant(
        "highest-seen-is-the-cursor",
        "P5, 8: the cursor is contiguous; the highest seq that was seen is never a cursor",
        Edit(
            INBOX,
            "if seq == cursor + 1 and len(ready) < room:",
            "if seq > cursor and len(ready) < room:",
        ),
    ),
    mutant(
        "seen-twice-shown-twice",
        "P5: an event is shown once",
        Edit(
            INBOX,
            "if seq == cursor + 1 and len(ready) < room:",
            "if seq <= cursor + 1 and len(ready) < room:",
        ),
    ),
    mutant(
        "what-is-missing-is-not-pulled",
        "P5: what is missing is fetched",
        Edit(
            INBOX,
            "            stream.cursor >= stream.session.head\n",
            "            stream.held or stream.cursor >= stream.session.head\n",
        ),
    ),
)
