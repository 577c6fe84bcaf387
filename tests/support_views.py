"""Views for tests, and places where a store of either kind can be opened again and again."""

from __future__ import annotations

import sqlite3
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from im_actors.core.model import Member, View, ViewState
from im_actors.server.views import (
    ViewStore,
)
from im_actors.server.views_redis import RedisViewStore
from im_actors.server.views_sqlite import SqliteViewStore

if TYPE_CHECKING:
    from tests.support_redis import RedisServer

MEMBERS = (Member("r1", "d1"), Member("r2", "d2"), Member("r3", "d3"))
OTHERS = (Member("r1", "d1"), Member("r2", "d2"), Member("r4", "d4"))


def first(slot: int = 7) -> View:
    return View(slot, 0, ViewState.RECOVERING, "", MEMBERS)


def claim(old: View, owner: str = "shard-1.a") -> View:
    return View(old.slot, old.epoch + 1, ViewState.RECOVERING, owner, old.members)


def active(old: View, members: tuple[Member, ...] = OTHERS) -> View:
    return old._replace(state=ViewState.ACTIVE, members=members)


class Place(Protocol):
    cluster: str

    async def open(self, expected: str | None = None) -> ViewStore: ...

    def plant(self, slot: int, record: bytes) -> None:
        """Put bytes in the place of a record; the store is closed."""


class SqlitePlace:
    def __init__(self, path: Path) -> None:
        self.cluster = "c1"
        self.path = path

    async def open(self, expected: str | None = None) -> SqliteViewStore:
        store = SqliteViewStore(self.path, self.cluster, lock_wait_s=0)
        await store.open(expected)
        return store

    def sql(self, statement: str, *values: object) -> None:
        connection = sqlite3.connect(self.path, isolation_level=None)
        connection.execute(statement, values)
        connection.close()

    def plant(self, slot: int, record: bytes) -> None:
        self.sql("INSERT OR REPLACE INTO views VALUES(?, ?)", slot, record)


class RedisPlace:
    def __init__(self, server: RedisServer, timeout_s: float = 60.0) -> None:
        self.cluster = f"c-{uuid.uuid4().hex[:8]}"
        self.server = server
        self.timeout_s = timeout_s

    async def open(
        self, expected: str | None = None, *, allow_unsafe: bool = False
    ) -> RedisViewStore:
        store = RedisViewStore(
            self.server.url, self.cluster, self.timeout_s, allow_unsafe=allow_unsafe
        )
        await store.open(expected)
        return store

    def key(self, name: object) -> str:
        return f"im:{{{self.cluster}}}:{name}"

    def plant(self, slot: int, record: bytes) -> None:
        self.server.command("SET", self.key(f"view:{slot}"), record)
