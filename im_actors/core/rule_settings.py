"""What an operator may set about rights and limits."""

from __future__ import annotations

from dataclasses import dataclass

from im_actors.errors import SetupError


@dataclass(frozen=True, slots=True, kw_only=True)
class RuleSettings:
    """The limits of the user side. All owners of a cluster should have the same."""

    recall_ms: int = 120_000
    """Milliseconds in which a message may be recalled by its sender; 0: for ever."""
    edit_ms: int = 900_000
    """Milliseconds in which a message may be edited; 0: for ever."""
    services: frozenset[str] = frozenset()
    """The users who may send notices."""
    devices_max: int = 10
    """Most devices of one user."""
    group_members_max: int = 100_000
    group_add_max: int = 1_000
    """Most users whom one event may add to a group or remove from it."""

    def validate(self) -> RuleSettings:
        """Itself; SetupError when a limit makes no sense."""
        for name, lowest in (
            ("recall_ms", 0),
            ("edit_ms", 0),
            ("devices_max", 1),
            ("group_members_max", 1),
            ("group_add_max", 1),
        ):
            if getattr(self, name) < lowest:
                raise SetupError(f"{name} is {getattr(self, name)}, it must be at least {lowest}")
        return self
