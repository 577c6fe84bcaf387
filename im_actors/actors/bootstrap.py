"""Attaches to Ray on behalf of ``deploy``: ``python -m im_actors.actors.bootstrap FD``.

A process of its own, because Ray writes to the standard output of whoever attaches, waits for
minutes where it should fail, and ends a process that has lost it. The request is JSON on standard
input (it holds secrets, which a command line shows to everybody). File descriptor FD gets a line of
JSON for each step, {"progress": TEXT}, and at the end the result or {"error": [CODE, TEXT]}.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import replace
from typing import Any, TextIO

from im_actors.actors import ray_api
from im_actors.actors.controller_actor import ControllerActor
from im_actors.actors.gathering import Say, wait_for_hosts
from im_actors.actors.placement import (
    NODE,
    WITHOUT_DATA,
    Host,
    lasting,
    place,
    read_places,
    spread,
    write_places,
)
from im_actors.actors.processes import free_port
from im_actors.actors.settings import CONTROLLER, ActorSettings, actor_env
from im_actors.errors import ImError, SetupError

READY_S = 40.0
END_S = 10.0


def create(
    address: str, settings: ActorSettings, hosts_s: float = 0.0, say: Say = lambda text: None
) -> dict[str, Any]:
    """Make the controller and return when it runs; it makes the others. ``hosts_s``: how long hosts
    may take to come."""
    head = ray_api.connect(address, settings.namespace)
    gateways: list[str] = []
    if settings.joined:
        known = lasting(read_places(settings.directory), settings.topology)
        hosts = wait_for_hosts(_names(settings, "replica"), known, ray_api.hosts, hosts_s, say)
        # Actors of this cluster that no run.json knows cannot be reached and would be in the way.
        ray_api.end(settings.namespace, CONTROLLER, END_S)
        settings = _placed(settings, hosts, known)
        gateways = _gateways(settings, hosts)
    controller = ray_api.create(
        ControllerActor,
        CONTROLLER,
        settings.namespace,
        (settings,),
        settings.places.get(CONTROLLER, ""),
        actor_env(settings),
    )
    ray_api.call_and_wait(controller, "ready", READY_S)
    return {
        "ray_address": head,
        "admin_address": settings.admin_address,
        "admin_port": settings.admin_port,
        "gateways": gateways,
    }


def launch(address: str, settings: ActorSettings, start: list[str]) -> dict[str, Any]:
    """Start a Ray of our own in this process's session, then ``create``."""
    ray_api.start_head(start)
    return create(address, settings)


def _placed(settings: ActorSettings, hosts: list[Host], known: dict[str, str]) -> ActorSettings:
    """Replicas tied to disks, shards and gateways to the hosts of those that stay, and the
    controller to this one, where the data directory is."""
    here = ray_api.node_address()
    topology = settings.topology
    free = [host for host in hosts if host.address not in topology.hosts_out]
    places = place(_names(settings, "replica"), free, known)
    others = [name for kind in WITHOUT_DATA for name in _names(settings, kind)]
    places |= spread(others, topology.replicas, hosts, places)
    write_places(settings.directory, places)
    return replace(
        settings,
        places={CONTROLLER: NODE + here, **places},
        admin_address=here,
        admin_port=free_port(here),
    )


def _gateways(settings: ActorSettings, hosts: list[Host]) -> list[str]:
    """The addresses of the hosts that have one."""
    wanted = {settings.places[name] for name in _names(settings, "gateway")}
    return [host.address for host in hosts if wanted.intersection(host.resources)]


def end(address: str, settings: ActorSettings) -> dict[str, Any]:
    """End all actors of the cluster, the controller first: it would start the others again."""
    ray_api.connect(address, settings.namespace)
    return {"ended": ray_api.end(settings.namespace, CONTROLLER, END_S)}


def _names(settings: ActorSettings, kind: str) -> list[str]:
    return [desired.name for desired in settings.desired() if desired.kind == kind]


def main(descriptor: int) -> int:
    request = json.load(sys.stdin)
    with os.fdopen(descriptor, "w") as file:
        try:
            result = _done(request, file)
        except ImError as error:
            result = {"error": [error.code, str(error)]}
        except Exception as error:
            result = {"error": [SetupError.code, repr(error)]}
            raise
        finally:
            _write(file, result)
    return 0


def _done(request: dict[str, Any], file: TextIO) -> dict[str, Any]:
    settings = ActorSettings(**request["settings"])
    address = request["address"]
    if request["do"] == "launch":
        return launch(address, settings, request["start"])
    if request["do"] == "end":
        return end(address, settings)
    return create(
        address, settings, request["hosts_s"], lambda text: _write(file, {"progress": text})
    )


def _write(file: TextIO, line: dict[str, Any]) -> None:
    file.write(json.dumps(line) + "\n")
    file.flush()


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1])))
