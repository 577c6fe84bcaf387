"""A long content of a batch, as its recipients get it from a whole cluster in one process."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from im_actors.client import Client
from im_actors.core.batch import CONTENT_BYTES_MAX
from im_actors.core.names import notice_session
from im_actors.testing import LocalCluster
from tests.test_batches import QUOTAS, RULES, order
from tests.test_notes import PATIENCE_S

LONG = "Summer sale! " * (CONTENT_BYTES_MAX // 13)


async def test_every_recipient_gets_the_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By following, by history, and as the beginning in the list."""
    monkeypatch.setattr("tests.test_batches.CONTENT", LONG)
    async with LocalCluster(
        tmp_path / "data", slots=4, shards=1, rules=RULES, batches=QUOTAS
    ) as cluster:
        session = notice_session("system", "ann")
        async with (
            Client(cluster.url, "shop", "pc", None) as shop,
            Client(cluster.url, "ann", store=tmp_path / "ann.db") as ann,
            asyncio.timeout(PATIENCE_S),
        ):
            events = ann.follow(session)
            for name in ("one", "two"):
                await order(shop, name, ["ann", "bob"], "high")
                event = await anext(events)
                assert (event.device, event.text) == (f"shop/batch:{name}", LONG)
            async with Client(cluster.url, "ann", store=tmp_path / "other.db") as other:
                await other.connected()
                page = await other.history(session)
                assert [event.text for event in page.events] == [LONG, LONG]
                row = await other.conversation(session)
                assert row is not None
                assert LONG.startswith(row.preview)
                assert len(row.preview) == 100
