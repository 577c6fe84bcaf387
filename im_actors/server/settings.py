"""What an operator sets about a cluster: one file for all of it, and the same for all actors.

    [rules]          # core.rule_settings.RuleSettings
    services = ["support", "billing"]
    recall_ms = 120000

    [lines]          # core.lines.LineSettings
    direct = 4

    [batches]        # core.batch_run.BatchSettings
    answer_ms = 8000
    [batches.high]
    per_s_max = 20000
    in_flight_max = 1024

    [mailbox]        # MailboxSettings
    redis = "redis://:password@10.0.0.5/0"

    [shares]         # net.shares.ShareSettings
    connections_per_user = 20

    [tls]            # TlsSettings
    certificate = "/etc/im/host.pem"
    key = "/etc/im/host.key"
    authorities = "/etc/im/ca.pem"

What is not named keeps its default; a name that nobody knows is an error.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from im_actors.core.batch_run import BatchSettings
from im_actors.core.lines import LineSettings
from im_actors.core.model import check_name
from im_actors.core.rule_settings import RuleSettings
from im_actors.errors import ImError, SetupError
from im_actors.net.shares import ShareSettings
from im_actors.net.tls import TlsFiles

LARGE_ACCOUNTS_MAX = 1_000
SERVICES_MAX = 10_000
MAILBOX_FILES = "mailboxes"
"""Below the data directory: the gateways' copies of conversation lists."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class MailboxSettings:
    """Where copies of conversation lists are kept, besides in the gateways' memory. They make lists
    come faster, and are never needed for a right one."""

    redis: str = field(default="", repr=False)
    """URL of a Redis for the hot tier. Empty: none."""
    warm: bool = False
    """Keep a file of copies beside each gateway. Off, as it pays only where replicas are on other
    hosts, or slow: on one machine it writes each change once more to read it from the same disk."""
    large_accounts: frozenset[str] = frozenset()
    """Users whose conversation lists are loaded at the start and kept in memory."""

    def validate(self) -> MailboxSettings:
        """Itself; SetupError when a value makes no sense."""
        if self.redis:
            check_redis_url("mailbox: redis", self.redis)
        if len(self.large_accounts) > LARGE_ACCOUNTS_MAX:
            raise SetupError(f"mailbox: large_accounts are at most {LARGE_ACCOUNTS_MAX}")
        _check_users("mailbox: large_accounts", self.large_accounts)
        return self


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsSettings:
    """PEM files at the same paths on every host, each host with a certificate of its own. When they
    are replaced, new connections are shown the new ones within seconds."""

    certificate: str = ""
    """The chain, this host's certificate first. Empty: no TLS."""
    key: str = ""
    """Its private key, without a password."""
    authorities: str = ""
    """Who signs the hosts' certificates: with it gateways, shards, replicas and commands show each
    other theirs. Empty: TLS for clients only, with a certificate that their systems believe."""

    def validate(self) -> TlsSettings:
        """Itself; SetupError when one is missing. The files are not looked at."""
        if bool(self.certificate) != bool(self.key):
            raise SetupError("tls: certificate and key belong together (--tls-cert, --tls-key)")
        if self.authorities and not self.certificate:
            raise SetupError("tls: authorities (--tls-ca) mean nothing without a certificate")
        return self

    def below(self, directory: Path) -> TlsSettings:
        """With absolute paths; ``directory`` is where relative ones begin."""
        paths = {name: value for name, value in asdict(self).items() if value}
        return replace(self, **{n: str((directory / p).absolute()) for n, p in paths.items()})

    @property
    def files(self) -> TlsFiles | None:
        """None: no TLS."""
        files = TlsFiles(self.certificate, self.key, self.authorities)
        return files if self.certificate else None


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterSettings:
    """All of it."""

    rules: RuleSettings = field(default_factory=RuleSettings)
    lines: LineSettings = field(default_factory=LineSettings)
    batches: BatchSettings = field(default_factory=BatchSettings)
    mailbox: MailboxSettings = field(default_factory=MailboxSettings)
    tls: TlsSettings = field(default_factory=TlsSettings)
    shares: ShareSettings = field(default_factory=ShareSettings)

    def validate(self) -> ClusterSettings:
        """Itself; SetupError when a value or a pair of values makes no sense."""
        self.rules.validate()
        if len(self.rules.services) > SERVICES_MAX:
            raise SetupError(f"rules: services are at most {SERVICES_MAX}")
        _check_users("rules: services", self.rules.services)
        self.lines.validate()
        try:
            self.batches.validate()
        except ValueError as error:
            raise SetupError(f"batches: {error}") from None
        self.mailbox.validate()
        self.tls.validate()
        self.shares.validate()
        return self

    def to_dict(self) -> dict[str, Any]:
        """All of it as JSON can hold it, secrets included."""
        plain: dict[str, Any] = _plain(asdict(self))
        return plain

    def public(self) -> dict[str, Any]:
        """The same, for people: without the password in a URL."""
        shown = replace(self.mailbox, redis=without_password(self.mailbox.redis))
        return replace(self, mailbox=shown).to_dict()

    @classmethod
    def from_dict(cls, given: Mapping[str, Any], source: str = "settings") -> ClusterSettings:
        """SetupError, which names ``source``, for a name or a type that does not belong there."""
        return _merged(cls(), given, source, "").validate()

    def gateway_fields(self, cluster: str, directory: Path) -> dict[str, Any]:
        """What a GatewayConfig takes over; ``directory`` is the data directory."""
        return {
            "lines": self.lines,
            "shares": self.shares,
            "mailbox_redis": self.mailbox.redis,
            "mailbox_cluster": cluster,
            "mailbox_dir": str(directory / MAILBOX_FILES) if self.mailbox.warm else "",
            "large_accounts": self.mailbox.large_accounts,
        }


def read_settings(path: Path) -> ClusterSettings:
    """Of a TOML file; SetupError says what is wrong with it."""
    try:
        with path.open("rb") as file:
            given = tomllib.load(file)
    except OSError as error:
        raise SetupError(f"{path} cannot be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SetupError(f"{path} is not TOML: {error}") from None
    found = ClusterSettings.from_dict(given, str(path))
    return replace(found, tls=found.tls.below(path.absolute().parent))


def check_redis_url(name: str, url: str) -> None:
    """SetupError, which does not repeat the URL: it may hold a password."""
    try:
        parts = urlsplit(url)
        good = parts.scheme in ("redis", "rediss") and bool(parts.hostname)
        good = good and (parts.port is None or parts.port > 0)
    except ValueError:
        good = False
    if not good:
        raise SetupError(f"{name} must be a URL like redis://HOST:PORT/0")


def has_password(url: str) -> bool:
    parts = urlsplit(url)
    return parts.password is not None or "password=" in parts.query


def without_password(url: str) -> str:
    """The URL as logs, errors and status may show it."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}" if url else ""


def _merged(base: T, given: Mapping[str, Any], source: str, section: str) -> T:
    """``base`` with what is given in the place of its own."""
    assert is_dataclass(base)
    known = {one.name for one in fields(base)}
    where = f"{source}: [{section}]" if section else source
    changed: dict[str, Any] = {}
    for name, value in given.items():
        if name not in known:
            raise SetupError(f"{where} has no {name!r}; it has {', '.join(sorted(known))}")
        old = getattr(base, name)
        inner = f"{section}.{name}" if section else name
        if is_dataclass(old):
            if not isinstance(value, Mapping):
                raise SetupError(f"{where}: {name} is a section, [{inner}]")
            changed[name] = _merged(old, value, source, inner)
        else:
            changed[name] = _value(f"{where}: {name}", old, value)
    return replace(base, **changed)  # type: ignore[type-var]


def _value(name: str, old: Any, value: Any) -> Any:
    if isinstance(old, frozenset):
        if not isinstance(value, list) or not all(type(one) is str for one in value):
            raise SetupError(f"{name} must be a list of strings")
        return frozenset(value)
    if type(value) is not type(old):
        kinds = {int: "a whole number", bool: "true or false", str: "a string"}
        raise SetupError(f"{name} must be {kinds[type(old)]}")
    return value


def _check_users(name: str, users: frozenset[str]) -> None:
    for user in sorted(users):
        try:
            check_name("user", user)
        except ImError as error:
            raise SetupError(f"{name}: {user!r}: {error}") from None


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _plain(inner) for name, inner in value.items()}
    return sorted(value) if isinstance(value, frozenset) else value
