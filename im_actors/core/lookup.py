"""How a rule looks at what the owner knows: what is not known yet is asked for, never guessed."""

from __future__ import annotations

from im_actors.core.rules import EventHead, Known, Needs


class Ask(Exception):
    """Ends a decision that cannot be made before something has been loaded."""

    def __init__(self, needs: Needs) -> None:
        super().__init__(needs)
        self.needs = needs


class Lookup:
    """``Known``, as rules read it."""

    __slots__ = ("known",)

    def __init__(self, known: Known) -> None:
        self.known = known

    @property
    def session(self) -> str:
        return self.known.session

    @property
    def next_seq(self) -> int:
        """The seq of the event that is being decided on, if it is accepted."""
        return self.known.last_seq + 1

    def want(self, *keys: str, events: tuple[int, ...] = ()) -> None:
        """Go on only when all of these are known. A rule that wants several things wants them in
        one call, so that they are loaded at once."""
        facts, heads = self.known.facts, self.known.events
        unknown = tuple(key for key in dict.fromkeys(keys) if key not in facts)
        unread = tuple(seq for seq in events if seq not in heads)
        if unknown or unread:
            raise Ask(Needs(unknown, unread))

    def value(self, key: str) -> bytes | None:
        """The value of a fact; None when there is none, or none any more."""
        self.want(key)
        fact = self.known.facts[key]
        return fact.value if fact is not None else None

    def head(self, seq: int) -> EventHead | None:
        self.want(events=(seq,))
        return self.known.events[seq]
