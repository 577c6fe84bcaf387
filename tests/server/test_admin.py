"""The operator's door answers with results, errors keep their code, strangers stay out."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from im_actors.errors import BadRequest, NotReachable, RateLimited, SetupError
from im_actors.server.admin import AdminClient, AdminServer

SECRET = b"s" * 32


async def double(number: int) -> int:
    return 2 * number


async def refuse() -> None:
    raise RateLimited("slower, please")


async def break_down() -> None:
    raise ZeroDivisionError("a bug")


@pytest.fixture
async def port() -> AsyncIterator[int]:
    methods = {"double": double, "refuse": refuse, "break_down": break_down}
    server = AdminServer("controller", SECRET, methods)
    yield await server.start("127.0.0.1")
    await server.stop()


async def test_a_call_brings_its_result(port: int) -> None:
    async with AdminClient("127.0.0.1", port, SECRET) as admin:
        assert await admin.call("double", 21) == 42
        assert await admin.call("double", 4) == 8


async def test_an_error_keeps_its_code_and_text(port: int) -> None:
    async with AdminClient("127.0.0.1", port, SECRET) as admin:
        with pytest.raises(RateLimited, match="slower"):
            await admin.call("refuse")
        with pytest.raises(SetupError, match="ZeroDivisionError"):
            await admin.call("break_down")
        with pytest.raises(BadRequest, match="no method 'nothing'"):
            await admin.call("nothing")


async def test_another_secret_is_kept_out(port: int) -> None:
    async with AdminClient("127.0.0.1", port, b"x" * 32, timeout_s=0.5) as admin:
        with pytest.raises(NotReachable, match="does not answer"):
            await admin.call("double", 1)


async def test_nobody_there_is_said_with_what_to_do(unused_tcp_port: int) -> None:
    async with AdminClient("127.0.0.1", unused_tcp_port, SECRET, timeout_s=0.3) as admin:
        with pytest.raises(NotReachable, match="im-actors up starts it"):
            await admin.call("double", 1)
