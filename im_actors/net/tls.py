"""TLS from files: what a process shows, what it believes, and new certificates without a restart.

Clients verify the gateway's certificate and its host name, and prove who they are by their token.
On a link both sides show a certificate of the cluster's own authority. Names are not compared
there: actors move between hosts, and who has such a certificate and knows the cluster's secret is
one of them.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from pathlib import Path
from typing import Any, NamedTuple

from im_actors.errors import SetupError

logger = logging.getLogger(__name__)

REFRESH_S = 2.0
"""Between two looks at the files."""
_FLIGHTS_MAX = 10
_UNSIGNED = frozenset((2, 18, 19, 20, 21, 24, 27))
"""X509_V_ERR_…: no issuer, self-signed, unverifiable, an authority that is none, untrusted."""
_PURPOSE = 26
"""X509_V_ERR_INVALID_PURPOSE."""
_NO_TLS = frozenset(("WRONG_VERSION_NUMBER", "PACKET_LENGTH_TOO_LONG", "RECORD_LAYER_FAILURE"))


class TlsFiles(NamedTuple):
    """PEM files, as every host of the cluster has them."""

    certificate: str
    """The chain, with this host's own certificate first."""
    key: str
    """Its private key, without a password."""
    authorities: str = ""
    """The certificates of those who sign the hosts' certificates. Empty: only clients are served
    with TLS, and links go without."""


class Certificates:
    """The contexts of one process. ``refresh`` looks whether the files are others; connections that
    are up keep what they have shown.

    An authority that is taken out of its file stays believed until the process starts again.
    """

    def __init__(self, files: TlsFiles) -> None:
        self._files = files
        self.for_links = bool(files.authorities)
        """Whether there is all that the two ends of a link need."""
        self._loaded = _state(files)
        self.clients = _serving()
        """For the door of clients."""
        self.accepting = _serving()
        self.dialing = _dialing()
        """For the two ends of links."""
        self.accepting.verify_mode = ssl.CERT_REQUIRED
        self.dialing.check_hostname = False
        for context in (self.accepting, self.dialing):
            context.minimum_version = ssl.TLSVersion.TLSv1_3
        self._load()

    def refresh(self) -> bool:
        """Show and believe what the files hold now; whether that was new. SetupError: they cannot
        be used, and what was shown before still is."""
        state = _state(self._files)
        if state == self._loaded:
            return False
        self._load()
        self._loaded = state
        return True

    def _load(self) -> None:
        # A context into which half a pair was loaded shows neither: try it on another one. And a
        # certificate that the other hosts refuse is worse than the one before it.
        if self.for_links:
            hosts_of(self._files)
        else:
            _load_pair(_serving(), self._files)
        for context in (self.clients, self.accepting, self.dialing):
            _load_pair(context, self._files)
        if self.for_links:
            for context in (self.accepting, self.dialing):
                _load_authorities(context, self._files.authorities)


async def keep_fresh(certificates: Certificates, every_s: float = REFRESH_S) -> None:
    """Have new files noticed, for ever. What cannot be used is logged, once."""
    said = ""
    while True:
        await asyncio.sleep(every_s)
        try:
            if certificates.refresh():
                logger.info("new certificates are shown from now on")
            said = ""
        except SetupError as error:
            if str(error) != said:
                said = str(error)
                logger.error("the certificates from before stay in use: %s", error)


def client_context(authorities: str = "") -> ssl.SSLContext:
    """For a client that compares the host's name and believes just these authorities, or those of
    the system when there are none."""
    context = _dialing()
    if authorities:
        _load_authorities(context, authorities)
    else:
        context.load_default_certs()
    return context


def hosts_of(files: TlsFiles) -> tuple[str, ...]:
    """The host names and addresses that a certificate is for. SetupError when those who believe the
    authorities (without them: those of the system) would not accept it from either end of a
    connection."""
    accepting, dialing = _serving(), client_context(files.authorities)
    dialing.check_hostname = False
    _load_pair(accepting, files)
    if files.authorities:
        _load_pair(dialing, files)
        _load_authorities(accepting, files.authorities)
        accepting.verify_mode = ssl.CERT_REQUIRED
    try:
        shown = _shake_hands(accepting, dialing)
    except ssl.SSLError as error:
        raise SetupError(
            f"nobody would accept the certificate {files.certificate}: {why_not(error)}"
        ) from None
    names = shown.get("subjectAltName", ())
    hosts = tuple(value for kind, value in names if kind in ("DNS", "IP Address"))
    if not hosts:
        raise SetupError(f"the certificate {files.certificate} names no host (subjectAltName)")
    return hosts


def why_not(error: ssl.SSLError) -> str:
    """Why a peer was not accepted, in words for who connects to it."""
    if isinstance(error, ssl.SSLCertVerificationError):
        if error.verify_code in _UNSIGNED:
            return (
                f"whoever signed it is not believed here ({error.verify_message}); the file with"
                " the certificate of its authority has to be named (--tls-ca, tls_ca)"
            )
        if error.verify_code == _PURPOSE:
            return (
                "its extendedKeyUsage forbids it: a host of a cluster needs serverAuth and"
                " clientAuth, a gateway alone serverAuth"
            )
        return f"{error.verify_message}".lower().rstrip(".")
    if error.reason in _NO_TLS:
        return "what answers does not speak TLS: is it im:// and not ims://?"
    return _why(error)


def _shake_hands(accepting: ssl.SSLContext, dialing: ssl.SSLContext) -> dict[str, Any]:
    """Both ends of a connection in memory; what the dialer was shown."""
    inbound, outbound = ssl.MemoryBIO(), ssl.MemoryBIO()
    dialer = dialing.wrap_bio(inbound, outbound)
    waiting = [dialer, accepting.wrap_bio(outbound, inbound, server_side=True)]
    for _ in range(_FLIGHTS_MAX):
        for end in list(waiting):
            try:
                end.do_handshake()
                waiting.remove(end)
            except ssl.SSLWantReadError:
                continue
    assert not waiting, "a handshake takes two flights from either end"
    return dialer.getpeercert() or {}


def _serving() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context


def _dialing() -> ssl.SSLContext:
    """It verifies and compares names; unlike a default context it believes none of the system's
    authorities."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context


def _load_pair(context: ssl.SSLContext, files: TlsFiles) -> None:
    certificate, key = _existing(files.certificate), _existing(files.key)
    try:
        context.load_cert_chain(certificate, key, password=_no_password)
    except (ssl.SSLError, OSError, ValueError) as error:
        raise SetupError(
            f"the certificate {certificate} and the key {key} cannot be used together: "
            f"{_why(error)}; both must be PEM files, the key without a password"
        ) from None


def _no_password() -> str:
    raise ValueError("the key has a password")


def _load_authorities(context: ssl.SSLContext, path: str) -> None:
    try:
        context.load_verify_locations(_existing(path))
    except (ssl.SSLError, OSError) as error:
        raise SetupError(f"{path} holds no certificates of authorities: {_why(error)}") from None


def _why(error: Exception) -> str:
    reason = getattr(error, "reason", None)
    return str(reason).lower().replace("_", " ") if reason else str(error)


def _existing(path: str) -> str:
    try:
        with Path(path).open("rb"):
            return path
    except OSError as error:
        raise SetupError(f"cannot read {path}: {error.strerror}") from None


def _state(files: TlsFiles) -> tuple[tuple[int, int, int], ...]:
    """Another one whenever a file was written or replaced."""
    try:
        stats = [Path(path).stat() for path in files if path]
    except OSError as error:
        raise SetupError(f"cannot read {error.filename}: {error.strerror}") from None
    return tuple((stat.st_ino, stat.st_mtime_ns, stat.st_size) for stat in stats)
