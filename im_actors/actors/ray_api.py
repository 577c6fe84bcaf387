"""Every call to Ray that the cluster makes.

The rules of the house (design section 3): an answer that does not come means *unknown*; Ray never
retries a call; every call has our own timeout; calls of Ray that block run in a thread, because the
loop that they would stop serves the view store.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import logging
import time
from collections.abc import Sequence
from typing import Any

import ray
from ray.exceptions import (
    ActorDiedError,
    ActorUnavailableError,
    RayActorError,
    RayError,
    RayTaskError,
)
from ray.util import metrics

from im_actors.actors.placement import Host
from im_actors.actors.settings import ACTOR_CALLS_MAX
from im_actors.errors import ImError, NotReachable, SetupError

PIN = 0.001
"""How much of a host's resource an actor takes that is tied to the host: next to nothing."""


def start_head(arguments: list[str]) -> None:
    """``ray start`` in this process, which saves a second import of Ray. SetupError: it failed."""
    from ray.scripts.scripts import cli

    try:
        cli.main(args=["start", "--head", *arguments], standalone_mode=False)
    except (Exception, SystemExit) as error:
        raise SetupError(f"Ray does not start: {_first_line(error)}") from error


def start_node(head: str, temp_dir: str, resources: dict[str, float], store_bytes: int) -> None:
    """Start a further node on this host, on loopback only; its processes outlive this one.

    ``ray start`` would refuse loopback, so this makes the node as Ray's own tests do. SetupError:
    it failed.
    """
    try:
        from ray._private.node import Node
        from ray._private.parameter import RayParams

        settings = RayParams(
            gcs_address=head,
            node_ip_address="127.0.0.1",
            temp_dir=temp_dir,
            num_cpus=1,
            num_gpus=0,
            resources=resources,
            object_store_memory=store_bytes,
            include_log_monitor="",  # A text to Ray; empty means no.
            dashboard_agent_listen_port=0,
            min_worker_port=0,
            max_worker_port=0,
        )
        Node(settings, head=False, shutdown_at_exit=False, spawn_reaper=False, connect_only=False)
    except Exception as error:
        raise SetupError(f"a node of Ray does not start: {_first_line(error)}") from error


def connect(address: str, namespace: str) -> str:
    """Attach this process to a running Ray; the address of its head."""
    try:
        ray.init(
            address=address, namespace=namespace, log_to_driver=False, logging_level=logging.WARNING
        )
    except (RayError, ConnectionError, RuntimeError, ValueError) as error:
        raise SetupError(f"no Ray answers at {address!r}: {_first_line(error)}") from error
    return str(ray.get_runtime_context().gcs_address)


def disconnect() -> None:
    ray.shutdown()


def counter(name: str, description: str, labels: tuple[str, ...]) -> Any:
    return metrics.Counter(name, description, labels)


def gauge(name: str, description: str, labels: tuple[str, ...]) -> Any:
    return metrics.Gauge(name, description, labels)


def histogram(name: str, description: str, labels: tuple[str, ...], bounds: Sequence[float]) -> Any:
    return metrics.Histogram(name, description, list(bounds), labels)


def node_address() -> str:
    """The address of the node that this process runs on."""
    return str(ray.util.get_node_ip_address())  # type: ignore[no-untyped-call]


def hosts() -> list[Host]:
    """The nodes that are alive, in a stable order."""
    alive = [node for node in _nodes() if node["Alive"]]
    found = [Host(n["NodeManagerAddress"], tuple(sorted(n["Resources"]))) for n in alive]
    return sorted(found)


def _nodes() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    return found


def create(
    kind: type,
    name: str,
    namespace: str,
    arguments: tuple[Any, ...],
    resource: str = "",
    env: dict[str, str] | None = None,
) -> Any:
    """The handle of the actor ``name``, made when there is none. Blocks for a moment.

    Detached: it outlives who made it. Ray restarts it without end, and it does nothing then until
    it is told to start.
    """
    options: dict[str, Any] = {
        "name": name,
        "namespace": namespace,
        "lifetime": "detached",
        "get_if_exists": True,
        "max_restarts": -1,
        "max_task_retries": 0,
        "max_concurrency": ACTOR_CALLS_MAX,
        "num_cpus": 0,
    }
    if resource:
        options["resources"] = {resource: PIN}
    else:
        # With num_cpus=0 the default would pile all of them on one node.
        options["scheduling_strategy"] = "SPREAD"
    if env:
        options["runtime_env"] = {"env_vars": env}
    return ray.remote(kind).options(**options).remote(*arguments)


def find(name: str, namespace: str) -> Any:
    """The handle of an actor that exists; NotReachable when there is none. Blocks for a moment."""
    try:
        return ray.get_actor(name, namespace)
    except (ValueError, RayError) as error:
        raise NotReachable(f"there is no actor {name}: {_first_line(error)}") from error


async def call(handle: Any, method: str, *args: Any) -> Any:
    """Call a method; its ImError, or NotReachable when the outcome is unknown. No timeout."""
    try:
        return await getattr(handle, method).remote(*args)
    except RayTaskError as error:
        if isinstance(error.cause, ImError):
            raise error.cause from None
        raise NotReachable(f"{method} failed: {error.cause!r}") from error
    except RayError as error:
        raise NotReachable(f"{method}: {_first_line(error)}") from error


def tell(handle: Any, method: str, *args: Any) -> None:
    """Call a method and never learn what came of it."""
    getattr(handle, method).remote(*args)


async def until_gone(handle: Any, life: str) -> str:
    """Return when this life of the actor has ended, with the reason.

    The call hangs in the actor for as long as it lives. Ray tells of a dead process within a tenth
    of a second, and the actor itself when it is another one by now.
    """
    try:
        return str(await handle.live.remote(life))
    except RayActorError as error:
        return _first_line(error)


def call_and_wait(handle: Any, method: str, timeout_s: float, *args: Any) -> Any:
    """``call`` for a process without a loop."""
    try:
        return ray.get(getattr(handle, method).remote(*args), timeout=timeout_s)
    except RayTaskError as error:
        if isinstance(error.cause, ImError):
            raise error.cause from None
        raise SetupError(f"{method} failed: {error.cause!r}") from error
    except RayError as error:
        raise NotReachable(f"{method}: {_first_line(error)}") from error


def kill(handle: Any) -> None:
    """End an actor for good. Blocks for a moment."""
    try:
        ray.kill(handle, no_restart=True)
    except (ValueError, RayError) as error:
        raise NotReachable(f"an actor is not ended: {_first_line(error)}") from error


def end(namespace: str, first: str, timeout_s: float) -> list[str]:
    """End all actors of a namespace for good, ``first`` before the others; return when their names
    are free."""
    ended: list[str] = []
    deadline = time.monotonic() + timeout_s
    while left := _named(namespace):
        for name in sorted(left, key=lambda name: name != first):
            with contextlib.suppress(ValueError, RayError):
                ray.kill(ray.get_actor(name, namespace), no_restart=True)
                ended.append(name)
        if time.monotonic() > deadline:
            raise NotReachable(
                f"{', '.join(sorted(left))} of {namespace} are still there after {timeout_s:.0f} s"
            )
        time.sleep(0.05)
    return ended


def _named(namespace: str) -> list[str]:
    """The named actors of a namespace."""
    named = ray.util.list_named_actors(all_namespaces=True)
    return [entry["name"] for entry in named if entry["namespace"] == namespace]


def _breathe(seconds: float) -> None:
    # What a restarted actor would have to load first.
    importlib.import_module("im_actors.actors.controller_actor")
    time.sleep(seconds)


async def warm_workers(count: int, seconds: float = 0.3) -> None:
    """Have ``count`` idle workers ready: tasks that run beside each other need one each."""
    task = ray.remote(num_cpus=1, max_retries=0)(_breathe)
    await asyncio.gather(*[task.remote(seconds) for _ in range(count)], return_exceptions=True)


def _first_line(error: BaseException) -> str:
    """In a few words: Ray explains each dead actor in ten lines."""
    if isinstance(error, ActorUnavailableError):
        return "its process ended or cannot be reached"
    if isinstance(error, ActorDiedError):
        return "Ray has ended it for good"
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0]
