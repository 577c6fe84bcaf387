"""Formats: what lets two releases run side by side, and one of them go back.

A *format* is one number for all that actors say to each other and write to disks: the frames of
links, the records of logs, the files of data directories. A release knows a range of them. It
reads and writes each of these, and so a release that brings a new one keeps the one before:

- a link speaks the highest format that both ends know, whatever the others speak;
- what is written, records and files, stays in the cluster's format, which is changed by an
  operator who says that the upgrade is finished (``server.upgrade``). Until then every release that
  knows the cluster's format can be put back;
- whoever meets a format that he does not know says so and touches nothing.

The controller's own files and views have versions of their own, which follow the same rule: what a
release adds there it does not write before the cluster's format is one that has it.

What passes through Ray is pickled by name and not covered: a method's arguments and a tuple's
fields stay as they are, or get more with a default once no older release is in use.
"""

from __future__ import annotations

from typing import NamedTuple

from im_actors.errors import NewerFormat, SetupError, UnknownVersion


class Formats(NamedTuple):
    """A range of formats, or of versions of the client protocol, that a release knows."""

    oldest: int
    newest: int

    def __str__(self) -> str:
        return f"{self.oldest}" if self.oldest == self.newest else f"{self.oldest} to {self.newest}"

    def agreed(self, newest: int, what: str) -> int:
        """What to speak with who knows formats up to ``newest``; UnknownVersion when that is older
        than all that is known here. ``what`` names the language in the error."""
        if newest < self.oldest:
            raise UnknownVersion(
                f"{what} {newest} is not spoken here, only {self}: update the side that connects"
            )
        return min(newest, self.newest)

    def accepted(self, answered: int, what: str) -> int:
        """What the other side has chosen, after it was told the newest; UnknownVersion when it is
        not known here."""
        if not self.oldest <= answered <= self.newest:
            raise UnknownVersion(
                f"the other side speaks {what} {answered}, this one {self}: update the other side"
            )
        return answered

    def check_written(self, form: int, who: str) -> None:
        """NewerFormat, or SetupError for one that is too old, when the cluster writes a format that
        is not known here; ``who`` is told."""
        if form > self.newest:
            raise NewerFormat(
                f"{who}: this cluster writes format {form}, this version of im_actors knows {self};"
                " install a newer one on this host"
            )
        if form < self.oldest:
            raise SetupError(
                f"{who}: this cluster writes format {form}, this version of im_actors knows {self};"
                " install one that knows both first, and finish the upgrade to it"
            )


FORMATS = Formats(5, 5)
"""Those of this release. Up to 4 links spoke one version and no other; directories that say 2 are
of format 5 in all but the number."""
FIRST_FORMAT = 5
"""What a cluster writes that has never said what it writes."""
