"""Starts a further node of a local Ray, for tests of lost nodes:
``python -m im_actors.actors.further_node ADDRESS DIRECTORY RESOURCES``.

A process of its own, because everything that it leaves running is in its session, which is how the
node is found and killed.
"""

from __future__ import annotations

import json
import sys

from im_actors.actors import ray_api
from im_actors.actors.processes import OBJECT_STORE_BYTES


def main(address: str, temp_dir: str, resources: str) -> None:
    ray_api.start_node(address, temp_dir, json.loads(resources), OBJECT_STORE_BYTES)


if __name__ == "__main__":
    main(*sys.argv[1:])
