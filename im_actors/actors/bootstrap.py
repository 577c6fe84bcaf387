"""Attaches to Ray on behalf of ``deploy``: ``python -m im_actors.actors.bootstrap FD``.

A process of its own, because Ray writes to the standard output of whoever attaches, waits for
minutes where it should fail, and ends a process that has lost it. The request is JSON on standard
input (it holds secrets, which a command line shows to everybody), the result is JSON on file
descriptor FD.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import replace
from typing import Any

from im_actors.actors import ray_api
from im_actors.actors.controller_actor import ControllerActor
from im_actors.actors.placement import NODE, place, read_places, write_places
from im_actors.actors.processes import free_port
from im_actors.actors.settings import CONTROLLER, ActorSettings, actor_env
from im_actors.errors import ImError, SetupError

READY_S = 20.0
END_S = 10.0


def create(address: str, settings: ActorSettings) -> dict[str, Any]:
    """Make the controller and return when it runs; it makes the others."""
    head = ray_api.connect(address, settings.namespace)
    if settings.joined:
        # Actors of this cluster that no run.json knows cannot be reached and would be in the way.
        ray_api.end(settings.namespace, _names(settings), END_S)
        settings = _placed(settings)
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
    }


def launch(address: str, settings: ActorSettings, start: list[str]) -> dict[str, Any]:
    """Start a Ray of our own in this process's session, then ``create``."""
    ray_api.start_head(start)
    return create(address, settings)


def _placed(settings: ActorSettings) -> ActorSettings:
    """Replicas tied to disks, the controller to this host, where the data directory is."""
    here = ray_api.node_address()
    replicas = [d.name for d in settings.desired() if d.kind == "replica"]
    places = place(replicas, ray_api.hosts(), read_places(settings.directory))
    write_places(settings.directory, places)
    return replace(
        settings,
        places={CONTROLLER: NODE + here, **places},
        admin_address=here,
        admin_port=free_port(here),
    )


def end(address: str, settings: ActorSettings) -> dict[str, Any]:
    """End all actors of the cluster, the controller first: it would start the others again."""
    ray_api.connect(address, settings.namespace)
    return {"ended": ray_api.end(settings.namespace, _names(settings), END_S)}


def _names(settings: ActorSettings) -> list[str]:
    return [CONTROLLER, *(desired.name for desired in settings.desired())]


def main(descriptor: int) -> int:
    request = json.load(sys.stdin)
    settings = ActorSettings(**request["settings"])
    try:
        if request["do"] == "launch":
            result = launch(request["address"], settings, request["start"])
        else:
            work = {"create": create, "end": end}[request["do"]]
            result = work(request["address"], settings)
    except ImError as error:
        result = {"error": [error.code, str(error)]}
    except Exception as error:
        result = {"error": [SetupError.code, repr(error)]}
        raise
    finally:
        with os.fdopen(descriptor, "w") as file:
            json.dump(result, file)
    return 0


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1])))
