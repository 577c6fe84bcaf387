"""up, status, down, verify, story and token: the operator's side."""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from im_actors.cli.client_commands import AddCommand, positive_number, positive_seconds
from im_actors.cli.output import note, print_json, printable
from im_actors.cli.target import (
    add_data_option,
    add_secret_option,
    data_of,
    running_cluster,
    secret_of,
)
from im_actors.core.model import COPIES
from im_actors.errors import NotReachable, SetupError
from im_actors.server.settings import (
    ClusterSettings,
    TlsSettings,
    check_redis_url,
    has_password,
    read_settings,
)
from im_actors.server.topology import kind_of

VERIFY_TIMEOUT_S = 900.0
STATUS_TIMEOUT_S = 15.0
RATE_SAMPLE_S = 0.5
ACTORS_BY_CORES_MAX = 4
"""One shard and one gateway for two cores, up to so many of each: with more than the cores can run
at once, batches are smaller and each message costs more."""
EXIT_INTERRUPTED = 130
EXIT_TERMINATED = 143


def register(add: AddCommand) -> None:
    _register_up(add)
    _register_status(add)
    _register_down(add)
    _register_verify(add)
    _register_story(add)
    _register_token(add)


def actors_by_cores() -> int:
    """How many shards, and how many gateways, ``up`` starts when it is not told."""
    return max(1, min(ACTORS_BY_CORES_MAX, (os.cpu_count() or 1) // 2))


def _register_up(add: AddCommand) -> None:
    parser = add(
        "up",
        "start a cluster, or join a running Ray, and return when it serves",
        "  im-actors up\n"
        "  im-actors up --data /srv/im --shards 4 --gateways 2 --port 7070\n"
        "  im-actors up --address auto --replicas 4 --host 0.0.0.0\n"
        "  im-actors up --address auto --redis redis://10.0.0.5:6379/0\n"
        "  im-actors up --host 0.0.0.0 --token-secret-file /etc/im.secret\n"
        "  im-actors up --tls-cert host.pem --tls-key host.key --tls-ca ca.pem\n"
        "  im-actors up --services support,billing --settings /etc/im.toml\n\n"
        "In the settings file, for instance:\n"
        "  [rules]\n"
        "  recall_ms = 600000        # how long a message may be recalled\n"
        "  [lines]\n"
        "  rows = 512                # sends under way, of all lines of business that are busy\n"
        "  [batches.high]\n"
        "  per_s_max = 10000\n"
        "  in_flight_max = 512\n"
        "  [mailbox]\n"
        '  large_accounts = ["support"]\n'
        "  [shares]                  # of one gateway, so that nobody has all of it\n"
        "  connections_per_address = 2000\n"
        "  attempts_per_s = 100      # new connections of one address\n"
        "  connections_per_user = 100\n"
        "  sends_per_s = 50000       # of one user\n"
        "  [tls]                     # paths begin where this file is\n"
        '  certificate = "host.pem"\n'
        '  key = "host.key"\n'
        '  authorities = "ca.pem"\n'
        "A name that does not exist is refused with those that do.",
    )
    parser.add_argument(
        "--address",
        default="local",
        help="local: a Ray of its own (default); auto or HOST:PORT: a Ray that runs",
    )
    add_data_option(parser)
    parser.add_argument(
        "--slots",
        metavar="N",
        type=positive_number,
        help="virtual shards, fixed when the cluster is made (default: 64)",
    )
    by_cores = actors_by_cores()
    for name, what, default in (
        (
            "shards",
            "actors that order messages; beside a single one another stands by",
            f"by the cores of this machine, {by_cores}; in a Ray that runs as many as replicas",
        ),
        (
            "replicas",
            "actors that keep them, each with its own directory, on several hosts its own disk",
            "3; in a Ray that runs as many as there have been",
        ),
        ("gateways", "actors that clients connect to", "as of shards"),
    ):
        parser.add_argument(
            f"--{name}",
            metavar="N",
            type=positive_number,
            help=f"{what} (default: {default})",
        )
    parser.add_argument(
        "--hosts-timeout",
        metavar="S",
        dest="hosts_s",
        type=positive_seconds,
        default=180.0,
        help="seconds in which a Ray that runs must have a host with a disk of its own for each"
        " replica (default: 180)",
    )
    parser.add_argument(
        "--host", default="127.0.0.1", help="where gateways listen (default: 127.0.0.1)"
    )
    parser.add_argument(
        "--port",
        type=port_number,
        default=7070,
        help="the first gateway's port, the next ones follow (default: 7070)",
    )
    _add_settings_options(parser)
    add_secret_option(parser)
    parser.add_argument(
        "--insecure-open",
        action="store_true",
        help="let everybody in without a token, also from other hosts",
    )
    parser.add_argument(
        "--foreground", action="store_true", help="stay until Ctrl-C, then stop the cluster"
    )
    parser.add_argument("--json", action="store_true", help="print where it runs as JSON")
    parser.set_defaults(run=up)


def _add_settings_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--redis",
        metavar="URL",
        help="keep the views in this Redis; a URL with a password in $IM_ACTORS_REDIS",
    )
    parser.add_argument(
        "--mailbox-redis",
        metavar="URL",
        help="keep copies of conversation lists in this Redis; a URL with a password in"
        " $IM_ACTORS_MAILBOX_REDIS or in the settings file",
    )
    parser.add_argument(
        "--services", metavar="A,B", help="users who may send notices and batch messages"
    )
    parser.add_argument(
        "--settings",
        metavar="FILE",
        type=Path,
        help="a TOML file with the sections [rules], [lines], [batches], [mailbox], [shares] and"
        " [tls]",
    )
    _add_tls_options(parser)


def _add_tls_options(parser: argparse.ArgumentParser) -> None:
    """For certificates; a renewed one is picked up without a restart."""
    group = parser.add_argument_group(
        "TLS",
        "PEM files, the same paths on every host. Replace them, and new connections get what they"
        " hold within seconds, without a restart. In the settings file: section [tls].",
    )
    group.add_argument(
        "--tls-cert", metavar="FILE", help="this host's certificate: clients connect with ims://"
    )
    group.add_argument("--tls-key", metavar="FILE", help="its private key, without a password")
    group.add_argument(
        "--tls-ca",
        metavar="FILE",
        help="who signed the hosts' certificates (for a self-signed one: itself): links between"
        " actors use TLS, too, and both ends show a certificate. Without it the certificate must be"
        " one that the system believes",
    )


def _register_status(add: AddCommand) -> None:
    parser = add(
        "status",
        "show slots, shards, replicas and gateways",
        "  im-actors status\n  im-actors status --json | jq .slots.unhealthy\n\n"
        "Exit code 0 means that every slot is served and every actor runs.",
    )
    add_data_option(parser)
    parser.add_argument("--json", action="store_true", help="everything, as one JSON object")
    parser.set_defaults(run=lambda args: asyncio.run(status(args)))


def _register_down(add: AddCommand) -> None:
    parser = add(
        "down",
        "stop the cluster cleanly, or clean up after one that was killed",
        "  im-actors down\n  im-actors down --data /srv/im",
    )
    add_data_option(parser)
    parser.set_defaults(run=down)


def _register_verify(add: AddCommand) -> None:
    parser = add(
        "verify",
        "read all replicas and compare them",
        "  im-actors verify\n  im-actors verify --data /srv/im --json\n\n"
        "Works on a running cluster, and on the directories of one that is down. Exit code 0\n"
        "means that nothing is divergent, corrupt or missing.",
    )
    add_data_option(parser)
    parser.add_argument("--json", action="store_true", help="one JSON object")
    parser.set_defaults(run=lambda args: asyncio.run(verify(args)))


def _register_story(add: AddCommand) -> None:
    parser = add(
        "story",
        "show what the cluster did with a message",
        "  im-actors story team 17\n"
        "  im-actors story team 17 --device alice/cli-3f9a2c71\n\n"
        "N is the sender's own number of the message, as in the output of send --json.",
    )
    parser.add_argument("session", metavar="SESSION", help="the conversation")
    parser.add_argument("n", metavar="N", type=positive_number, help="the message")
    parser.add_argument("--device", metavar="D", help="the sender's device address")
    add_data_option(parser)
    parser.add_argument("--json", action="store_true", help="a JSON array of lines")
    parser.set_defaults(run=lambda args: asyncio.run(story(args)))


def _register_token(add: AddCommand) -> None:
    parser = add(
        "token",
        "make a token for a user",
        "  im-actors token alice --token-secret-file /etc/im.secret\n"
        "  IM_ACTORS_TOKEN=$(im-actors token bob) im-actors tail team --as bob",
    )
    parser.add_argument("user", metavar="USER", help="whom it lets in")
    parser.add_argument("--device", metavar="D", help="only with this device")
    parser.add_argument(
        "--ttl",
        metavar="S",
        type=positive_seconds,
        default=3600.0,
        help="seconds until it expires (default: 3600)",
    )
    add_secret_option(parser)
    parser.set_defaults(run=token)


# -- the commands ----------------------------------------------------------------------------------


def up(args: argparse.Namespace) -> int:
    """Start; with --foreground stay until a signal, then stop."""
    from im_actors.actors import deploy

    data = data_of(args).absolute()
    config = deploy.UpConfig(data=data, **up_settings(args))
    run = deploy.up(config, note)
    if args.json:
        print_json({"data": str(data), "url": run.url, "ray": run.ray_address})
    else:
        print(f"serving at {run.url}", flush=True)
    return _stay(lambda: deploy.down(data, note)) if args.foreground else 0


def up_settings(args: argparse.Namespace) -> dict[str, Any]:
    """The fields of UpConfig that the command line names."""
    names = ("address", "host", "port", "insecure_open", "hosts_s")
    settings = {name: getattr(args, name) for name in names} | _counts(args)
    settings["redis"] = _redis_of(args, "redis") or None
    settings["operator"] = operator_settings(args)
    if args.slots is not None:
        settings["slots"] = args.slots
    settings["token_secret"] = secret_of(args)
    return settings


def _counts(args: argparse.Namespace) -> dict[str, int]:
    """How many actors of each kind. On several hosts each that has a replica gets a shard and a
    gateway, and a replica that there was is never left out by saying nothing."""
    from im_actors.actors.placement import read_places

    replicas, others = COPIES, actors_by_cores()
    if args.address != "local":
        known = [name for name in read_places(data_of(args)) if kind_of(name) == "replica"]
        replicas = max(COPIES, len(known))
        others = args.replicas or replicas
    return {
        "replicas": args.replicas or replicas,
        "shards": args.shards or others,
        "gateways": args.gateways or others,
    }


def operator_settings(args: argparse.Namespace) -> ClusterSettings:
    """Of the settings file, and of the options, which take the place of what it says."""
    found = read_settings(args.settings) if args.settings is not None else ClusterSettings()
    if args.services is not None:
        services = frozenset(filter(None, map(str.strip, args.services.split(","))))
        found = replace(found, rules=replace(found.rules, services=services))
    tls = TlsSettings(
        certificate=args.tls_cert or found.tls.certificate,
        key=args.tls_key or found.tls.key,
        authorities=args.tls_ca or found.tls.authorities,
    )
    found = replace(found, tls=tls.below(Path.cwd()))
    redis = _redis_of(args, "mailbox_redis")
    if redis:
        found = replace(found, mailbox=replace(found.mailbox, redis=redis))
    return found.validate()


def _redis_of(args: argparse.Namespace, name: str) -> str:
    """Of the option, or of the environment. What is on a command line everybody on the machine can
    read."""
    option, variable = f"--{name.replace('_', '-')}", f"IM_ACTORS_{name.upper()}"
    url: str = getattr(args, name) or ""
    if url and has_password(url):
        raise SetupError(f"{option} shows its password to everybody here: say it in ${variable}")
    url = url or os.environ.get(variable, "")
    if url:
        check_redis_url(option, url)
    return url


def _stay(stop: Callable[[], None]) -> int:
    """Wait for Ctrl-C or SIGTERM, then stop; a second signal does not interrupt that. SIGTERM is
    how a service manager ends what it runs, so it is a success."""
    asked = threading.Event()
    numbers: list[int] = []

    def ask(number: int, frame: object) -> None:
        numbers.append(number)
        asked.set()

    before = {n: signal.signal(n, ask) for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        asked.wait()
        stop()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return EXIT_INTERRUPTED if numbers[0] == signal.SIGINT else 0


async def status(args: argparse.Namespace) -> int:
    """Twice, a moment apart, for the rate."""
    from im_actors.cli.status_table import show_status

    running = running_cluster(data_of(args))
    async with running.admin(STATUS_TIMEOUT_S) as admin:
        before = _acked(await admin.call("status"))
        await asyncio.sleep(RATE_SAMPLE_S)
        found: dict[str, Any] = await admin.call("status")
        rate = max(0, _acked(found) - before) / RATE_SAMPLE_S
        found["rates"] = {"acked_per_s": round(rate, 1)}
    found["settings"] = running.run.settings.get("operator", {})
    if args.json:
        print_json(found)
    else:
        show_status(found)
    return 0 if found["healthy"] else 1


def _acked(found: dict[str, Any]) -> int:
    return sum(shard.get("acked", 0) for shard in found["shards"].values())


def down(args: argparse.Namespace) -> int:
    """Stop, or clean up."""
    from im_actors.actors import deploy

    deploy.down(data_of(args).absolute(), note)
    return 0


async def verify(args: argparse.Namespace) -> int:
    """Ask the cluster; when it is down, read its directories."""
    from im_actors.cli.verify_offline import verify_directories

    data = data_of(args)
    try:
        running = running_cluster(data)
        found: dict[str, Any] = await running.call("verify", timeout_s=VERIFY_TIMEOUT_S)
    except (SetupError, NotReachable) as error:
        if not any(data.glob("replica-*")):
            raise
        note(f"reading the directories below {data}: {error}")
        found = await asyncio.to_thread(verify_directories, data)
    if args.json:
        print_json(found)
    else:
        show_verdict(found)
    return 0 if sound(found) else 1


def sound(found: dict[str, Any]) -> bool:
    """Whether nothing is wrong."""
    wrong = found["divergent"] or found["corrupt"] or found["missing"]
    return not wrong and not found["problems"] and bool(found.get("ok", True))


def show_verdict(found: dict[str, Any]) -> None:
    print(f"{found['events']:,} events in {found['records']:,} records of {found['slots']} slots")
    if found.get("dropped"):
        print(f"of {found['dropped']:,} of them the content was dropped with its month")
    for problem in found["problems"]:
        print(f"  {printable(problem)}")
    counts = ", ".join(f"{found[name]} {name}" for name in ("divergent", "corrupt", "missing"))
    print(("sound: " if sound(found) else "NOT SOUND: ") + counts, flush=True)


async def story(args: argparse.Namespace) -> int:
    """The notes of shards and replicas about one message."""
    running = running_cluster(data_of(args))
    lines = await running.call("story", args.session, args.device, args.n)
    if args.json:
        print_json(lines)
    else:
        for line in lines:
            print(printable(line))
    return 0


def token(args: argparse.Namespace) -> int:
    """Print a token, and nothing else."""
    from im_actors.core.model import check_name
    from im_actors.gateway.tokens import make_token

    check_name("user", args.user)
    if args.device is not None:
        check_name("device", args.device)
    secret = secret_of(args)
    if secret is None:
        raise SetupError(
            "which secret? --token-secret-file FILE or $IM_ACTORS_TOKEN_SECRET, the one that the"
            " cluster was started with; a cluster without one needs no tokens"
        )
    print(make_token(secret, args.user, args.device, args.ttl), flush=True)
    return 0


def port_number(text: str) -> int:
    try:
        port = int(text)
    except ValueError:
        port = 0
    if not 1 <= port <= 65_535:
        raise argparse.ArgumentTypeError(f"{text!r} is not a port")
    return port
