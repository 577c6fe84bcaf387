"""What ``ray start`` leaves out for a local cluster. Runs inside ``ray start`` (RAY_START_HOOK)."""

from __future__ import annotations

from typing import Any


def lean(params: Any, head: bool) -> None:
    """One host, loopback only, nobody who looks at a dashboard: 170 MB and a second less.

    The two agents that a raylet starts (180 MB) cannot be left out: it waits for their ports.
    """
    params.ray_client_server_port = None
    params.no_monitor = True
    params.node_ip_address = "127.0.0.1"
    try:
        from ray._private.node import Node

        setattr(Node, "start_api_server", lambda self, **_: None)  # noqa: B010
    except (ImportError, AttributeError):
        # Private to Ray: where it has gone, the dashboard's process runs and does no harm.
        return
