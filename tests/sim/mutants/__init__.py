"""The safety rules of design section 5, each with the sources in which it is missing.

Read it as a list of what must not be forgotten: ``python -m tests.sim --mutants`` shows that every
one of these rules matters: without it the simulation, the exhaustive check or storage under fire
finds something broken. ``redundant`` has those that another rule makes up for.
"""

from __future__ import annotations

from tests.sim.mutants.clients import CLIENTS
from tests.sim.mutants.copies import COPIES_OF_OLD
from tests.sim.mutants.knowledge import KNOWLEDGE
from tests.sim.mutants.redundant import REDUNDANT
from tests.sim.mutants.ruled import RULED
from tests.sim.mutants.shells import SHELLS
from tests.sim.mutants.takeovers import TAKEOVERS
from tests.sim.mutants.told import TOLD
from tests.sim.mutants.users import USERS
from tests.sim.mutants.writing import WRITING
from tests.sim.mutation import Mutant

MUTANTS: tuple[Mutant, ...] = (
    *WRITING,
    *TAKEOVERS,
    *COPIES_OF_OLD,
    *KNOWLEDGE,
    *RULED,
    *TOLD,
    *USERS,
    *CLIENTS,
    *SHELLS,
    *(rule.both for rule in REDUNDANT),
)


def find(name: str) -> Mutant:
    """The mutant of that name."""
    alone = [rule.alone for rule in REDUNDANT]
    found = [mutant for mutant in (*MUTANTS, *alone) if mutant.name == name]
    if not found:
        raise SystemExit(f"no mutant {name!r}; there are: {', '.join(m.name for m in MUTANTS)}")
    return found[0]
