"""``python -m bench.compare.generate LOAD``: loads a system once, in a process of its own.

Prints one JSON object; exit code 1 and a sentence when the measurement is void.
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

from bench.compare.clients import LOADERS
from bench.compare.loop import Load, Run, Void


def main() -> int:
    fields = json.loads(sys.argv[1])
    load = Load(**fields | {"addresses": tuple(map(tuple, fields["addresses"]))})
    try:
        print(json.dumps(_runner()(LOADERS[load.system](Run(load)))))
    except Void as void:
        print(void, file=sys.stderr)
        return 1
    return 0


def _runner() -> Any:
    """The faster event loop where it is installed, for all systems alike."""
    try:
        import uvloop
    except ImportError:
        return asyncio.run
    return uvloop.run


if __name__ == "__main__":
    sys.exit(main())
