"""Certificates for tests, made on the spot."""

from __future__ import annotations

import shutil
import ssl
import subprocess
from pathlib import Path

import pytest

from im_actors.net.tls import TlsFiles, client_context

_EC = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")


class Authority:
    """Signs certificates for 127.0.0.1."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir()
        self.directory = directory
        self.certificate, self._key = directory / "ca.pem", directory / "ca.key"
        self._openssl(
            *("req", "-x509", *_EC, "-days", "1", "-subj", f"/CN={directory.name}"),
            *("-keyout", str(self._key), "-out", str(self.certificate)),
        )

    def sign(self, name: str, host: str = "IP:127.0.0.1", days: int = 1) -> TlsFiles:
        """A new pair; under a name that is there already it takes the place of the old one. It has
        expired when ``days`` is negative."""
        key, request, pair = (self.directory / f"{name}.{end}" for end in ("key", "csr", "pem"))
        self._openssl(
            "req", *_EC, "-subj", f"/CN={name}", "-keyout", str(key), "-out", str(request)
        )
        extensions = self.directory / "extensions"
        extensions.write_text(f"subjectAltName={host}\n" if host else "")
        self._openssl(
            *(
                "x509",
                "-req",
                "-days",
                str(days),
                "-in",
                str(request),
                "-CA",
                str(self.certificate),
            ),
            *("-CAkey", str(self._key), "-CAcreateserial", "-extfile", str(extensions)),
            *("-out", str(pair)),
        )
        return TlsFiles(str(pair), str(key), str(self.certificate))

    def _openssl(self, *words: str) -> None:
        subprocess.run(["openssl", *words], check=True, capture_output=True)


@pytest.fixture(scope="session")
def authorities(tmp_path_factory: pytest.TempPathFactory) -> tuple[Authority, Authority]:
    """Two that have nothing to do with each other."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl is needed to make a certificate")
    directory = tmp_path_factory.mktemp("tls")
    return Authority(directory / "ours"), Authority(directory / "theirs")


@pytest.fixture(scope="session")
def tls(authorities: tuple[Authority, Authority]) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """(server's, client's) for 127.0.0.1."""
    files = authorities[0].sign("listener")
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    server.load_cert_chain(files.certificate, files.key)
    return server, client_context(files.authorities)
