"""What a load is: told on the command line, checked, and given to each generator as JSON."""

from __future__ import annotations

import random
import ssl
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from itertools import accumulate, chain, cycle
from typing import Any

from im_actors.core.model import BODY_BYTES_MAX
from im_actors.core.names import direct_session, notice_session, users_of
from im_actors.errors import SetupError
from im_actors.net.tls import client_context

STAMP_BYTES = 8
"""Each body begins with the time at which it was meant to be sent."""
WRITERS = 2
"""Connections that send to one session, as in a conversation of two; more when there are more
connections than sessions."""
DRAWS = 16_384
"""Drawn beforehand for each connection, and then used over and over."""
CONNECTIONS_MAX = 20_000
SESSIONS_MAX = 1_000_000
FOLLOWERS_MAX = 10_000
PROCESSES_MAX = 64
KINDS = ("open", "direct", "notice")


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """One load; the part of one generator is a Load too."""

    run: str
    """Names the sessions and devices of this run."""
    addresses: list[tuple[str, int]]
    """The gateways; connections are dealt to them in turn."""
    user: str = "bench"
    token: str | None = None
    tls: bool = False
    tls_ca: str = ""
    """PEM file of the authorities that are believed; empty: the system's."""
    tls_server_name: str = ""
    """What the gateways' certificates have to be for; empty: the address of each."""
    connections: int = 64
    bytes: int = 128
    sessions: int = 2_000
    zipf: float | None = None
    """Exponent of the sessions' popularity; None: all alike."""
    followers: int = 1
    """Of each session. 0: nobody follows, and the history is read when all is sent."""
    processes: int = 1
    number: int = 0
    """Of the generator."""
    kind: str = "open"
    """Of the sessions: open; direct: the sender's with others; notice: of others, who read them."""
    sends: bool = True
    """False: this generator reads only, what others send."""

    def validate(self, sessions_shared: bool = False) -> Load:
        """Itself; SetupError says what makes no sense. ``sessions_shared``: each generator has
        all of the sessions, and not a part of them."""
        for name, lowest, highest in (
            ("connections", 1, CONNECTIONS_MAX),
            ("bytes", STAMP_BYTES, BODY_BYTES_MAX),
            ("sessions", 1, SESSIONS_MAX),
            ("followers", 0, FOLLOWERS_MAX),
            ("processes", 1, PROCESSES_MAX),
        ):
            if not lowest <= getattr(self, name) <= highest:
                raise SetupError(f"--{name} must be {lowest} to {highest}")
        if self.kind not in KINDS:
            raise SetupError(f"sessions are {', '.join(KINDS)}, not {self.kind!r}")
        if self.zipf is not None and not 0 < self.zipf <= 10:
            raise SetupError("--zipf must be above 0 and at most 10")
        for name in () if sessions_shared else ("connections", "sessions"):
            if getattr(self, name) < self.processes:
                raise SetupError(f"--{name} must be at least --processes, {self.processes}")
        return self

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> Load:
        return cls(**fields)

    def tls_context(self) -> ssl.SSLContext | None:
        """None: connections go without TLS. SetupError: the authorities cannot be read."""
        return client_context(self.tls_ca) if self.tls else None

    @property
    def share(self) -> float:
        """Of the rate, for each generator."""
        return 1 / self.processes

    def part(self, number: int) -> Load:
        """What generator ``number`` does."""

        def share(total: int) -> int:
            return total // self.processes + (number < total % self.processes)

        return replace(
            self,
            run=f"{self.run}.{number}",
            number=number,
            connections=share(self.connections),
            sessions=share(self.sessions),
        )

    def session(self, number: int) -> str:
        name = f"bench-{self.run}-{number}"
        if self.kind == "direct":
            return direct_session(self.user, name)
        return notice_session("service", name) if self.kind == "notice" else name

    def reader(self, session: str) -> str:
        """Who may read it."""
        return users_of(session)[0] if self.kind == "notice" else self.user

    def device(self, number: int) -> str:
        return f"{self.run}-{number}"

    def address(self, number: int) -> tuple[str, int]:
        """Where the connection of this number goes. Generators begin at different gateways."""
        host, port = self.addresses[(self.number + number) % len(self.addresses)]
        return host, port

    def draws(self) -> Iterator[Iterator[str]]:
        """For each connection the sessions that it sends to, one after the other, for ever."""
        rng = random.Random(self.run)
        names = [self.session(number) for number in range(self.sessions)]
        popularity = list(
            accumulate((rank + 1) ** -(self.zipf or 0.0) for rank in range(len(names)))
        )
        for connection in range(self.connections):
            if self.zipf is None:
                own = [names[number] for number in self._own(connection)]
                rng.shuffle(own)
            else:
                own = rng.choices(names, cum_weights=popularity, k=DRAWS)
            yield cycle(own)

    def _own(self, connection: int) -> list[int]:
        if self.sessions < self.connections:
            return [connection % self.sessions]
        first = [(connection + n) % self.connections for n in range(WRITERS)]
        own = (range(number, self.sessions, self.connections) for number in dict.fromkeys(first))
        return list(chain.from_iterable(own))
