"""A relay that stands before shards and replicas, so that tests can cut and delay their links.

An actor that has started is given a door of the relay, and it is the door that the others hear of.
One line of JSON asks, one answers:

    {"name": "replica-1", "address": "127.0.0.1", "port": 4711}
    {"address": "127.0.0.1", "port": 4712}
"""

from __future__ import annotations

import asyncio
import json
from typing import Any

from im_actors.core.directory import ReplicaAddress, ShardAddress
from im_actors.errors import NotReachable

ASK_S = 3.0


async def relayed(relay: str, address: Any) -> Any:
    """``address`` as the others should hear it: of a shard or a replica, by way of the relay at
    HOST:PORT; NotReachable when that does not answer. All else stays as it is."""
    if not relay or not isinstance(address, ReplicaAddress | ShardAddress):
        return address
    host, _, port = relay.rpartition(":")
    asked = {"name": address.name, "address": address.address, "port": address.port}
    try:
        async with asyncio.timeout(ASK_S):
            reader, writer = await asyncio.open_connection(host, int(port))
            try:
                writer.write(json.dumps(asked).encode() + b"\n")
                door = json.loads(await reader.readline())
            finally:
                writer.close()
        return address._replace(address=str(door["address"]), port=int(door["port"]))
    except (OSError, TimeoutError, ValueError, KeyError, TypeError) as error:
        raise NotReachable(f"the relay at {relay} gives no door: {error!r}") from None
