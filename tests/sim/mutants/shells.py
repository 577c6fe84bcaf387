"""Rules that the real shells keep. The simulation has shells of its own, so storage under fire,
which runs the real ones on real files, has to notice."""

from tests.sim.mutation import Edit, mutant

SERVER_REPLICA = "im_actors.server.replica"
VIEWS = "im_actors.server.views_sqlite"
JOURNAL = "im_actors.storage.journal"

SHELLS = (
    mutant(
        "shell-answers-before-fsync",
        "5.2.3, 5.6: an answer leaves a replica when what was stored before it is on disk",
        Edit(
            SERVER_REPLICA,
            "        self._writing = True\n",
            "        self._writing = True\n"
            "        self._carry_out([e for e in effects if type(e) is not rep.Store])\n"
            "        effects = [e for e in effects if type(e) is rep.Store]\n",
        ),
        by="fire replica power-cuts",
    ),
    mutant(
        "failed-write-is-passed-over",
        "5.6: after a failed write the process ends; nothing is answered as if it had gone well",
        Edit(
            SERVER_REPLICA,
            "            self._fatal(error)\n            return\n        self.commits",
            "            pass\n        self.commits",
        ),
        by="fire replica failing-calls",
    ),
    mutant(
        "store-compares-the-epoch",
        "5.1: the view store compares the whole record, not the epoch alone",
        Edit(
            VIEWS,
            "if held != old or held == new:",
            "if (held and held.epoch) != (old and old.epoch) or held == new:",
        ),
        Edit(VIEWS, "WHERE slot = ? AND record = ?", "WHERE slot = ?"),
        Edit(
            VIEWS,
            "values = (encode_view(new), new.slot, encode_view(old))",
            "values = (encode_view(new), new.slot)",
        ),
        by="fire views kills",
    ),
    mutant(
        "journal-reads-unchecked",
        "5.3.3, 5.6: a journaled record is checked before it is used",
        Edit(
            JOURNAL,
            "if not typed or record_checksum(slot, lsn, epoch, payload) != checksum:",
            "if not typed:",
        ),
        by="fire replica flips",
    ),
)
