"""Tokens: who may come in, and what the others are told."""

from __future__ import annotations

import base64
import builtins
import json
import sys
import time
from typing import Any

import jwt
import pytest

from im_actors.errors import Forbidden, ImError, SetupError, Unauthenticated
from im_actors.gateway import Clock, check_token, make_token
from im_actors.wire import messages as m
from tests.gateway.fakes import cluster, text

SECRET = "a secret of clients, at least 32 bytes"
OTHER = "another secret, as long as the first one"


def forge(secret: str = SECRET, algorithm: str = "HS256", **changes: Any) -> str:
    now = int(time.time())
    claims = {"sub": "alice", "aud": "im_actors", "iat": now, "exp": now + 86_400, **changes}
    kept = {name: value for name, value in claims.items() if value is not None}
    return jwt.encode(kept, secret, algorithm=algorithm)


def unsigned() -> str:
    parts: list[dict[str, Any]] = [
        {"alg": "none", "typ": "JWT"},
        {"sub": "alice", "aud": "im_actors", "exp": int(time.time()) + 86_400},
    ]
    coded = [base64.urlsafe_b64encode(json.dumps(p).encode()).rstrip(b"=").decode() for p in parts]
    return ".".join([*coded, ""])


def nested() -> str:
    head = base64.urlsafe_b64encode(b"[" * 2_000).rstrip(b"=").decode()
    return f"{head}.{head}.AAAA"


def test_a_good_token_lets_in() -> None:
    check_token(SECRET, make_token(SECRET, "alice"), "alice", "phone-3f9a2c71")


@pytest.mark.parametrize("device", ["phone", "phone-3f9a2c71"])
def test_a_device_is_granted_with_and_without_its_store_id(device: str) -> None:
    check_token(SECRET, make_token(SECRET, "alice", device), "alice", "phone-3f9a2c71")


@pytest.mark.parametrize("device", ["pc", "phone-00000000", "phone-", "", "3f9a2c71"])
def test_another_device_is_forbidden(device: str) -> None:
    with pytest.raises(Forbidden, match="device"):
        check_token(SECRET, make_token(SECRET, "alice", device), "alice", "phone-3f9a2c71")


BAD = {
    "missing": (None, Unauthenticated, "there is none"),
    "expired": (forge(exp=int(time.time()) - 60), Unauthenticated, "expired"),
    "forged": (forge(OTHER), Unauthenticated, "not signed"),
    "alg none": (unsigned(), Unauthenticated, "HS256"),
    "another algorithm": (forge(SECRET * 2, algorithm="HS512"), Unauthenticated, "HS256"),
    "another user": (forge(sub="bob"), Forbidden, "user 'alice'"),
    "no user": (forge(sub=None), Unauthenticated, "sub"),
    "another service": (forge(aud="elsewhere"), Unauthenticated, "aud"),
    "no service": (forge(aud=None), Unauthenticated, "aud"),
    "no end": (forge(exp=None), Unauthenticated, "exp"),
    "not yet": (forge(nbf=int(time.time()) + 86_400), Unauthenticated, "cannot be used"),
    "no token at all": ("hello", Unauthenticated, "cannot be used"),
    "nonsense": ("a.b.c", Unauthenticated, "cannot be used"),
    "deep": (nested(), Unauthenticated, "cannot be used"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_token_does_not(case: str) -> None:
    token, kind, words = BAD[case]
    with pytest.raises(kind, match=words) as caught:
        check_token(SECRET, token, "alice", "phone")
    assert token is None or token not in str(caught.value)


@pytest.mark.parametrize("case", BAD)
async def test_the_client_is_told_and_hung_up_on(case: str) -> None:
    token, kind, words = BAD[case]
    async with cluster(token_secret=SECRET) as c:
        client = await c.connect()
        await client.send(m.hello("alice", "phone", token, ""))
        await client.until(lambda: client.ended)
        (error,) = client.received
        assert error[:2] == [m.ERROR, kind.code]
        assert words in error[2]
        good = await (await c.connect()).hello(token=make_token(SECRET, "alice"))
        assert good.of(m.WELCOME)


async def test_a_connection_does_not_outlive_its_token() -> None:
    """The client is sent away in order, to come back with a new one; nothing of it is lost."""
    ahead_ms = 0
    clock = Clock(wall_ms=lambda: int(time.time() * 1000) + ahead_ms)
    async with cluster(clock=clock, token_secret=SECRET) as c:
        short = await (await c.connect()).hello(token=make_token(SECRET, "alice", ttl_s=600))
        long = await (await c.connect()).hello(token=make_token(SECRET, "alice", ttl_s=6_000))
        await short.send(text("team", 1))
        await short.acks(1)
        ahead_ms = 700_000
        await short.until(lambda: short.ended)
        ((_, reason, reconnect_after_ms),) = short.of(m.SERVER_BYE)
        assert "expired" in reason
        assert reconnect_after_ms == 0
        await long.send(m.ping(1))
        await long.until(lambda: long.of(m.PONG))


def test_without_pyjwt_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    true_import = builtins.__import__

    def without_jwt(name: str, *args: Any, **more: Any) -> Any:
        if name == "jwt":
            raise ImportError(name)
        return true_import(name, *args, **more)

    monkeypatch.delitem(sys.modules, "jwt", raising=False)
    monkeypatch.setattr(builtins, "__import__", without_jwt)
    with pytest.raises(SetupError, match="pip install") as caught:
        make_token(SECRET, "alice")
    assert isinstance(caught.value, ImError)
