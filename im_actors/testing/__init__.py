"""A whole cluster in one process, for tests: the real machines, shells, files and TCP, without Ray.

::

    async with LocalCluster() as cluster, Client(cluster.url, user="alice") as im:
        ack = await (await im.send("team", "hello")).acked()
        await cluster.crash("shard-1")      # it comes back by itself, as under Ray
"""

from im_actors.testing.local import LocalCluster

__all__ = ["LocalCluster"]
