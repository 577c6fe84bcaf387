"""What the executor of batch messages hears and what it wants done: the words of
``core.batch_run``."""

from __future__ import annotations

from dataclasses import dataclass

from im_actors.core.facts import Fact

# -- events ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Began:
    """The slots of these batches are served here, and they may be active."""

    sessions: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Ended:
    """The slots of these batches are not served here any more."""

    sessions: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Changed:
    """A batch's event has committed and says these facts. ``started``: it is the event that has
    started the job, and it committed while the slot was served here, so that nobody else can have
    told anything of it."""

    session: str
    facts: tuple[Fact, ...]
    started: bool = False


@dataclass(frozen=True, slots=True)
class FactsRead:
    """The answer to ReadFacts: what there is under these keys, everything included that had
    committed when it was asked."""

    session: str
    keys: tuple[str, ...]
    facts: tuple[Fact, ...]


@dataclass(frozen=True, slots=True)
class Answered:
    """Outcomes of sends: (token, code, seq). Any answer to any copy of it."""

    answers: tuple[tuple[int, int, int], ...]


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed."""


BatchEvent = Began | Ended | Changed | FactsRead | Answered | Tick


# -- effects -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ReadFacts:
    """Read facts of a batch here, in its own slot; answer with FactsRead, or not at all."""

    session: str
    keys: tuple[str, ...]


@dataclass(slots=True)
class Send:
    """Give it to the owner of the session's slot; answer with Answered, if there is an answer."""

    token: int
    session: str
    device: str
    n: int
    kind: int
    body: bytes


@dataclass(frozen=True, slots=True)
class Say:
    """Note this in the batch itself. That it holds is heard by Changed."""

    session: str
    body: bytes


BatchEffect = ReadFacts | Send | Say
