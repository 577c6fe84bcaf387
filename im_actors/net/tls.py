"""TLS from files: what a process shows, what it believes, and new certificates without a restart.

Clients verify the gateway's certificate and its host name, and prove who they are by their token.
On a link both sides show a certificate of the cluster's own authority. Names are not compared
there: actors move between hosts, and who has such a certificate and knows the cluster's secret is
one of them.
"""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import NamedTuple

from im_actors.errors import SetupError


class TlsFiles(NamedTuple):
    """PEM files, as every host of the cluster has them."""

    certificate: str
    """The chain, with this host's own certificate first."""
    key: str
    """Its private key, without a password."""
    authorities: str
    """The certificates of those who sign the hosts' certificates."""


class Certificates:
    """The contexts of one process. ``refresh`` looks whether the files are others; connections that
    are up keep what they have shown.

    An authority that is taken out of its file stays believed until the process starts again.
    """

    def __init__(self, files: TlsFiles) -> None:
        self._files = files
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
        # A context into which half a pair was loaded shows neither: try it on another one.
        _load_pair(_serving(), self._files)
        for context in (self.clients, self.accepting, self.dialing):
            _load_pair(context, self._files)
        for context in (self.accepting, self.dialing):
            _load_authorities(context, self._files.authorities)


def client_context(authorities: str) -> ssl.SSLContext:
    """For a client that believes just these authorities, and compares the host's name."""
    context = _dialing()
    _load_authorities(context, authorities)
    return context


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
        stats = [Path(path).stat() for path in files]
    except OSError as error:
        raise SetupError(f"cannot read {error.filename}: {error.strerror}") from None
    return tuple((stat.st_ino, stat.st_mtime_ns, stat.st_size) for stat in stats)
