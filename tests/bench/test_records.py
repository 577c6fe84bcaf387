"""What a record costs: the nodes are driven as far as ACKs, whatever a frame and a record hold."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.records import measure


@pytest.fixture(autouse=True)
def collector() -> Iterator[None]:
    """What is measured has the collector of an actor; the tests after it do not."""
    thresholds = gc.get_threshold()
    yield
    gc.unfreeze()
    gc.set_threshold(*thresholds)


@pytest.mark.parametrize(("records", "messages"), [(1, 1), (40, 3)])
async def test_every_message_of_every_record_is_acknowledged(
    tmp_path: Path, records: int, messages: int
) -> None:
    found = await measure(tmp_path / "replica", records, messages, 0.05)
    assert (found["records"], found["messages"]) == (records, messages)
    assert found["shard_us"] > 0
    assert found["replica_us"] > 0
