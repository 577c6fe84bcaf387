"""Batch messages as a service orders them, against a small gateway with the real rules."""

from __future__ import annotations

from typing import Any

import pytest

from im_actors.client import sync
from im_actors.client.batches import batch_of
from im_actors.errors import BadRequest, Forbidden
from tests.client.batch_gateway import BatchGateway
from tests.client.test_sync import served as served


@pytest.fixture
def gateway_class() -> type[BatchGateway]:
    return BatchGateway


def test_from_the_order_to_the_recall(served: Any) -> None:
    served.frozen = True
    with sync.Client(served.url, "shop") as im, sync.Client(served.url, "eve") as eve:
        for client in (im, eve):
            client.connected(10)
        batches = im.batches
        assert batches.status("sale") is None
        batches.create("sale", "hello", "high", total=3)
        batches.recipients("sale", 0, ["ann", "deafbob"])
        batches.recipients("batch:sale", 1, ["carol"])
        batches.start("sale").acked(10)
        with pytest.raises(Forbidden):
            eve.batches.pause("sale").acked(10)
        with pytest.raises(Forbidden):
            eve.batches.status("sale")
        for ask, state in ((batches.pause, "paused"), (batches.resume, "running")):
            ask("sale").acked(10)
            info = batches.status("sale")
            assert info is not None
            assert (info.state, info.sender, info.recipients) == (state, "shop", 3)
        served.frozen = False
        batches.status("sale")
        info = batches.status("sale")
        assert info is not None
        assert (info.state, info.sent, info.refused, info.at_rest) == ("done", 2, 1, True)
        assert batches.outcomes("sale", 0) == (["ann", "deafbob"], {"deafbob": 111}, {})
        with pytest.raises(Forbidden):
            batches.cancel("sale").acked(10)
        batches.recall("sale").acked(10)
        batches.status("sale")
        info = batches.status("sale")
        assert info is not None
        assert (info.state, info.recalled, info.told) == ("recalled", 2, 3)


def test_what_is_a_batch() -> None:
    assert batch_of("sale") == batch_of("batch:sale") == "batch:sale"
    for wrong in ("", "a/b", "batch:"):
        with pytest.raises(BadRequest):
            batch_of(wrong)
