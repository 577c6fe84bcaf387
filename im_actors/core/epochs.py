"""Epoch histories: how two logs are compared without reading them.

No (epoch, lsn) ever has two contents (design 5.3), so two logs that agree on the epoch at an lsn
agree on everything up to it: the log matching property of Raft (Ongaro and Ousterhout 2014, 5.3).
"""

from __future__ import annotations

from bisect import bisect_right

from im_actors.core.messages import Epochs


def epoch_at(epochs: Epochs, lsn: int) -> int:
    """The epoch of the record at ``lsn``; 0 before the first record."""
    if lsn <= 0 or not epochs:
        return 0
    epoch, first_lsn = epochs[-1]  # It is nearly always asked for the log's end.
    return epoch if lsn >= first_lsn else epochs[_index_at(epochs, lsn)][0]


def _index_at(epochs: Epochs, lsn: int) -> int:
    index = bisect_right(epochs, lsn, key=lambda entry: entry[1]) - 1
    assert index >= 0, f"lsn {lsn} lies before the history {epochs}"
    return index


def cut_epochs(epochs: Epochs, last_lsn: int) -> Epochs:
    """The history of the log that ends at ``last_lsn``."""
    return tuple(entry for entry in epochs if entry[1] <= last_lsn)


def common_prefix(ours: Epochs, our_last: int, theirs: Epochs, their_last: int) -> int:
    """The last lsn up to which two logs hold the same records."""
    lsn = min(our_last, their_last)
    while lsn > 0:
        our_epoch, our_first = ours[_index_at(ours, lsn)]
        their_epoch, their_first = theirs[_index_at(theirs, lsn)]
        if our_epoch == their_epoch:
            return lsn
        # The log with the higher epoch wrote this stretch by itself: step over it.
        lsn = (our_first if our_epoch > their_epoch else their_first) - 1
    return 0
