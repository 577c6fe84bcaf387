"""What an operator has set reaches every actor."""

from __future__ import annotations

from pathlib import Path

import pytest

from im_actors.client import Client
from im_actors.errors import Forbidden, RequestError
from im_actors.server.settings import ClusterSettings
from im_actors.testing import LocalCluster


async def test_a_cluster_does_as_it_is_set(tmp_path: Path) -> None:
    settings = ClusterSettings.from_dict(
        {
            "rules": {"services": ["support"], "group_members_max": 2},
            "lines": {"rows": 64},
            "mailbox": {"warm": True, "large_accounts": ["bob"]},
        }
    )
    async with (
        LocalCluster(tmp_path, slots=4, settings=settings) as cluster,
        Client(cluster.url, user="support") as support,
        Client(cluster.url, user="bob") as bob,
    ):
        await (await support.send("notice:service/bob", "hello")).acked(20)
        with pytest.raises(Forbidden, match="bob may not send on notice:service/support"):
            await (await bob.send("notice:service/support", "hello")).acked(20)
        made = await bob.groups.create("three", "Three", ["alice", "carol"])
        with pytest.raises(RequestError, match="the limit is 2"):
            await made.acked(20)
        assert cluster.node("gateway-1").config.lines.rows == 64
        assert (tmp_path / "mailboxes" / "gateway-1.db").exists()
