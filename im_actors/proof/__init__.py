"""Checkers that share nothing with the code that they judge: they read bytes by rules of their own
and know only what clients and disks saw. ``anomalies`` lists what they find.

    history = History(tell=print)
    history.sent("team", "alice/phone", 1, 1, b"hello")
    history.acked("team", "alice/phone", 1, seq=1, epoch=1, copies=3)
    history.delivered("reader", "team", 1, "alice/phone", 1, 1, b"hello")
    history.final_read("team", [(1, "alice/phone", 1, 1, b"hello")])
    assert not history.finish()
"""

from im_actors.proof.anomalies import NAMES, Anomaly
from im_actors.proof.clients import ClientHistory, Seen
from im_actors.proof.history import History

__all__ = ["NAMES", "Anomaly", "ClientHistory", "History", "Seen"]
