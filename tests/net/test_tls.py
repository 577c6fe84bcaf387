"""Files that cannot be used, and new ones while everything runs."""

from __future__ import annotations

import asyncio
import hashlib
import shutil
import ssl
from pathlib import Path
from typing import Any

import pytest

from im_actors.errors import SetupError
from im_actors.net.connection import FramedProtocol
from im_actors.net.listener import listen
from im_actors.net.tls import Certificates, TlsFiles, client_context, hosts_of, keep_fresh
from im_actors.wire.codec import Message


class Quiet(FramedProtocol):
    def frames_received(self, messages: list[Message]) -> None:
        raise AssertionError(messages)


async def shown_by(port: int, files: TlsFiles) -> str:
    """The fingerprint of the certificate that a client gets to see."""
    context = client_context(files.authorities)
    _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
    certificate = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
    writer.close()
    return hashlib.sha256(certificate).hexdigest()


def fingerprint(path: str) -> str:
    pem = Path(path).read_text()
    return hashlib.sha256(ssl.PEM_cert_to_DER_cert(pem)).hexdigest()


def put(source: TlsFiles, target: TlsFiles, *fields: str) -> None:
    for field in fields:
        shutil.copyfile(getattr(source, field), getattr(target, field))


@pytest.fixture
def files(authorities: Any, tmp_path: Path) -> TlsFiles:
    """Copies that a test may replace."""
    signed = authorities[0].sign("here")
    copies = TlsFiles(*(str(tmp_path / name) for name in TlsFiles._fields))
    put(signed, copies, *TlsFiles._fields)
    return copies


async def test_new_certificates_are_shown_without_a_restart(
    files: TlsFiles, authorities: Any
) -> None:
    certificates = Certificates(files)
    listener = await listen(Quiet, "127.0.0.1", 0, ssl=certificates.clients)
    try:
        old = fingerprint(files.certificate)
        assert await shown_by(listener.port, files) == old
        assert certificates.refresh() is False
        newer = authorities[0].sign("there")
        # Between the two writes nothing fits, and the old pair is what clients get.
        put(newer, files, "certificate")
        with pytest.raises(SetupError, match="cannot be used together"):
            certificates.refresh()
        assert await shown_by(listener.port, files) == old
        put(newer, files, "key")
        assert certificates.refresh() is True
        assert await shown_by(listener.port, files) == fingerprint(newer.certificate) != old
        assert certificates.refresh() is False
    finally:
        listener.close()
        await listener.wait_closed()


def test_a_new_authority_is_believed_without_a_restart(files: TlsFiles, authorities: Any) -> None:
    ours, theirs = authorities
    certificates = Certificates(files)
    assert len(certificates.accepting.get_ca_certs()) == 1
    both = Path(ours.certificate).read_text() + Path(theirs.certificate).read_text()
    Path(files.authorities).write_text(both)
    assert certificates.refresh()
    assert len(certificates.accepting.get_ca_certs()) == 2
    assert len(certificates.dialing.get_ca_certs()) == 2


@pytest.mark.parametrize("field", TlsFiles._fields)
@pytest.mark.parametrize("content", [None, "", "no PEM at all"])
def test_files_that_cannot_be_used(files: TlsFiles, field: str, content: str | None) -> None:
    path = Path(getattr(files, field))
    path.unlink() if content is None else path.write_text(content)
    with pytest.raises(SetupError, match=path.name):
        Certificates(files)


def test_files_that_vanish_leave_what_was_loaded(files: TlsFiles) -> None:
    certificates = Certificates(files)
    Path(files.key).unlink()
    with pytest.raises(SetupError, match="cannot read"):
        certificates.refresh()


def test_a_key_of_another_certificate(files: TlsFiles, authorities: Any) -> None:
    put(authorities[0].sign("other"), files, "key")
    with pytest.raises(SetupError, match="cannot be used together: key values mismatch"):
        Certificates(files)


def test_the_hosts_of_a_certificate(authorities: Any) -> None:
    signed = authorities[0].sign("many", "DNS:im.test,DNS:*.im.test,IP:127.0.0.1")
    assert hosts_of(signed) == ("im.test", "*.im.test", "127.0.0.1")


@pytest.mark.parametrize(
    ("host", "days", "foreign", "says"),
    [
        ("IP:127.0.0.1", -1, False, "has expired"),
        ("IP:127.0.0.1", 1, True, "whoever signed it is not believed here"),
        ("", 1, False, "names no host"),
        ("IP:127.0.0.1\nextendedKeyUsage=serverAuth", 1, False, "needs serverAuth and clientAuth"),
    ],
)
def test_a_certificate_that_others_would_refuse(
    authorities: Any, host: str, days: int, foreign: bool, says: str
) -> None:
    ours, theirs = authorities
    signed = ours.sign("refused", host, days)
    if foreign:
        signed = signed._replace(authorities=str(theirs.certificate))
    with pytest.raises(SetupError, match=says) as refused:
        Certificates(signed)
    assert signed.certificate in str(refused.value)
    # For clients alone it is up to them: who believes the system's would not.
    assert not Certificates(signed._replace(authorities="")).for_links
    with pytest.raises(SetupError, match="nobody would accept"):
        hosts_of(signed._replace(authorities=""))


async def test_files_are_looked_at_again_and_again(
    files: TlsFiles, authorities: Any, caplog: pytest.LogCaptureFixture
) -> None:
    certificates = Certificates(files)
    listener = await listen(Quiet, "127.0.0.1", 0, ssl=certificates.clients)
    watching = asyncio.create_task(keep_fresh(certificates, 0.01))
    try:
        put(authorities[0].sign("late", days=-1), files, "certificate", "key")
        async with asyncio.timeout(60):
            while "stay in use" not in caplog.text:
                await asyncio.sleep(0.01)
        newer = authorities[0].sign("there")
        put(newer, files, "certificate", "key")
        async with asyncio.timeout(60):
            while await shown_by(listener.port, files) != fingerprint(newer.certificate):
                await asyncio.sleep(0.01)
    finally:
        watching.cancel()
        listener.close()
        await listener.wait_closed()
