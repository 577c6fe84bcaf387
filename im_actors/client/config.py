"""Where a client connects to, and its times."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple
from urllib.parse import urlsplit

from im_actors import __version__
from im_actors.core.formats import Formats
from im_actors.errors import SetupError
from im_actors.wire.messages import VERSIONS

PORT_DEFAULT = 7070
SCHEMES = {"im": False, "ims": True}
"""Scheme to whether it means TLS."""


class Address(NamedTuple):
    host: str
    port: int

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"


class Url(NamedTuple):
    addresses: tuple[Address, ...]
    tls: bool


def parse_url(url: str) -> Url:
    """``im://HOST[:PORT][,HOST[:PORT]…]``, or ``ims://`` for TLS. SetupError says what is wrong."""
    scheme, separator, rest = url.partition("://")
    if not separator or scheme not in SCHEMES:
        raise SetupError(f"{url!r} is not an address like im://127.0.0.1:7070 or ims://host:port")
    addresses = tuple(_address(part.strip(), url) for part in rest.rstrip("/").split(","))
    return Url(addresses, SCHEMES[scheme])


def _address(part: str, url: str) -> Address:
    try:
        split = urlsplit(f"//{part}")
        host, port = split.hostname, split.port
    except ValueError as error:
        raise SetupError(f"{part!r} in {url!r} is not HOST:PORT: {error}") from None
    if not host or split.netloc != part or split.username is not None:
        raise SetupError(f"{part!r} in {url!r} is not HOST:PORT")
    if port == 0:
        raise SetupError(f"port 0 in {url!r} is not a port that one can connect to")
    return Address(host, port or PORT_DEFAULT)


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientConfig:
    """The client's times. The defaults suit people and programs alike."""

    reconnect_base_ms: int = 100
    """The first reconnect comes after a random part of this; it doubles with each failure."""
    reconnect_cap_ms: int = 5_000
    """It doubles up to this. A connection that lasted as long resets it."""
    refused_retry_ms: int = 30_000
    """After a refusal for good, such as a bad token, the next try comes so late."""
    dial_timeout_ms: int = 5_000
    """TCP and TLS have to be up within this."""
    welcome_timeout_ms: int = 5_000
    """WELCOME has to follow within this."""
    probe_ms: int = 2_000
    """While an answer is being waited for, a silent server is pinged after this and not only after
    the server's heartbeat."""
    history_timeout_ms: int = 5_000
    """``history`` answers from the local store when the server has not answered within this."""
    drain_ms: int = 2_000
    """How long a client that is closed in order, and is connected, waits for missing ACKs. What is
    not ACKed by then stays in the store and is sent by the next start."""
    mailbox: bool = True
    """Whether the user's mailbox is followed while a server is there, so that the conversation list
    is up to date. Programs that only send or read sessions do without."""
    received_ms: int = 1_000
    """What came in direct conversations is reported to their senders at most so often, by devices
    whose store lasts and that follow the mailbox."""
    tls_ca: str = ""
    """PEM file with the certificates of the authorities that are believed, for ims://; empty: the
    system's."""
    tls_server_name: str = ""
    """The name that the server's certificate must be for; empty: the host in the URL."""
    versions: Formats = VERSIONS
    """Of the protocol, those that the client speaks; the newest that the server knows is used."""
    agent: str = f"im_actors {__version__}"
    """What the client says of itself to the server."""

    def validate(self) -> ClientConfig:
        """Itself; SetupError when a value makes no sense, alone or beside another."""
        times = {name: getattr(self, name) for name in self.__slots__ if name.endswith("_ms")}
        for name, value in times.items():
            if type(value) is not int or value < (0 if name == "drain_ms" else 1):
                raise SetupError(f"{name} is {value!r}, it must be a number of milliseconds")
        if self.reconnect_base_ms > self.reconnect_cap_ms:
            raise SetupError(
                f"reconnect_base_ms {self.reconnect_base_ms} is above reconnect_cap_ms "
                f"{self.reconnect_cap_ms}"
            )
        return self
