"""Which format two sides speak, and what is said when there is none."""

from __future__ import annotations

import pytest

from im_actors.core.formats import FIRST_FORMAT, FORMATS, Formats
from im_actors.errors import NewerFormat, SetupError, UnknownVersion


@pytest.mark.parametrize("ours", [Formats(a, b) for a in range(1, 5) for b in range(a, 5)])
@pytest.mark.parametrize("theirs", [Formats(a, b) for a in range(1, 5) for b in range(a, 5)])
def test_both_sides_agree_on_the_newest_that_both_know(ours: Formats, theirs: Formats) -> None:
    common = set(range(ours[0], ours[1] + 1)) & set(range(theirs[0], theirs[1] + 1))
    if common:
        spoken = ours.agreed(theirs.newest, "format")
        assert theirs.accepted(spoken, "format") == spoken == max(common)
        return
    with pytest.raises(UnknownVersion, match="update the"):
        theirs.accepted(ours.agreed(theirs.newest, "format"), "format")


def test_what_a_cluster_writes_is_known_or_said_to_be_not() -> None:
    known = Formats(6, 7)
    known.check_written(6, "replica-1")
    known.check_written(7, "replica-1")
    with pytest.raises(NewerFormat, match=r"replica-1: .*format 8.*knows 6 to 7; install a newer"):
        known.check_written(8, "replica-1")
    with pytest.raises(SetupError, match=r"format 5.*install one that knows both first"):
        known.check_written(5, "replica-1")
    FORMATS.check_written(FIRST_FORMAT, "a cluster that has never said what it writes")
