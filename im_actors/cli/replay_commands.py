"""replay and demo: play a chat, break things meanwhile, count."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from im_actors.cli.client_commands import AddCommand, positive_number
from im_actors.cli.cluster_commands import EXIT_TERMINATED, VERIFY_TIMEOUT_S, sound
from im_actors.cli.output import print_json, printable
from im_actors.cli.target import (
    Running,
    add_client_options,
    add_secret_option,
    client_config,
    data_of,
    running_cluster,
    secret_of,
    token_maker,
    url_of,
)
from im_actors.errors import SetupError, WrongDirectory
from im_actors.server.cluster_file import read_run
from im_actors.server.settings import ClusterSettings

if TYPE_CHECKING:
    from im_actors.cli.chatfile import Line
    from im_actors.cli.progress import Progress
    from im_actors.cli.replay import Report

DEMO_FAULTS = "kill-shard,kill-replica,drop-connections,kill-gateway,kill-shard"
ANOMALIES_SHOWN = 20
RESTART_S = 20.0
RESTART_TRY_S = 0.2


def register(add: AddCommand) -> None:
    _register_replay(add)
    _register_demo(add)


def _register_replay(add: AddCommand) -> None:
    parser = add(
        "replay",
        "play a chat file through real clients, with readers and faults, and check every message",
        "  im-actors replay chat.jsonl\n"
        "  im-actors replay chat.jsonl.gz --rate 500\n"
        "  im-actors replay chat.jsonl.gz --rate 60x\n"
        "  im-actors replay chat.jsonl --faults kill-shard,kill-replica,drop-connections --json\n\n"
        "The file has one JSON object a line: conversation, sender, sent_at (ISO 8601 or null),\n"
        "text, client_msg_id. A run writes to sessions of its own, CONVERSATION#RUN, so it can be\n"
        "repeated. The last line is one JSON object; exit code 0 means that every message was\n"
        "ACKed and none was lost, duplicated, reordered, skipped or changed.",
    )
    parser.add_argument("file", metavar="FILE", type=Path, help=".jsonl or .jsonl.gz")
    parser.add_argument(
        "--rate",
        metavar="X",
        help="500: messages per second; 60x: sixty times the pace of the file's own times, every"
        " conversation from the start on (default: as fast as it goes)",
    )
    parser.add_argument(
        "--faults",
        metavar="LIST",
        default="",
        help="injected evenly over the run, in this order: kill-shard, kill-replica, kill-gateway,"
        " pause-shard, drop-connections, kill-all",
    )
    parser.add_argument(
        "--limit", metavar="N", type=positive_number, help="only the first N messages"
    )
    _add_replay_options(parser)
    add_client_options(parser)
    add_secret_option(parser)
    parser.set_defaults(run=lambda args: run_loop(replay(args)))


def _register_demo(add: AddCommand) -> None:
    parser = add(
        "demo",
        "start a cluster of its own, chat, kill parts of it meanwhile, count, verify, stop",
        "  im-actors demo\n  im-actors demo --messages 100000 --json\n\n"
        "Needs no cluster and leaves nothing behind. The last line is one JSON object as of\n"
        "replay, with the result of verify; exit code 0 means that nothing at all was wrong.",
    )
    parser.add_argument(
        "--messages", metavar="N", type=positive_number, help="how many (default: 21000)"
    )
    parser.add_argument(
        "--faults", metavar="LIST", default=DEMO_FAULTS, help=f"(default: {DEMO_FAULTS})"
    )
    parser.add_argument("--seed", metavar="N", type=int, help="of the generated chat")
    _add_replay_options(parser)
    parser.set_defaults(run=demo)


def _add_replay_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--clients", metavar="N", type=positive_number, default=64,
        help="most sending clients; with more senders some share one (default: 64)",
    )  # fmt: skip
    parser.add_argument(
        "--window", metavar="N", type=positive_number, default=32,
        help="most sends of a client that wait for their receipt (default: 32)",
    )  # fmt: skip
    parser.add_argument(
        "--json", action="store_true", help="nothing but the JSON line on standard output"
    )


def run_loop(work: Any) -> int:
    """Run in an event loop, a faster one where it is installed. SIGTERM cancels the work, as
    Ctrl-C does, and then ends the command."""
    terminated: list[int] = []
    factory: Callable[[], asyncio.AbstractEventLoop] = asyncio.new_event_loop
    try:
        import uvloop

        factory = uvloop.new_event_loop
    except ImportError:
        pass
    with _heard_outside(), asyncio.Runner(loop_factory=factory) as runner:
        try:
            return runner.run(_terminable(work, terminated))
        except asyncio.CancelledError:
            if not terminated:
                raise
    raise SystemExit(EXIT_TERMINATED)


async def _terminable(work: Any, terminated: list[int]) -> int:
    """A signal's handler that raises would do so wherever the program is just then; inside of a
    protocol uvloop takes that for the protocol's own failure, and goes on."""
    task = asyncio.current_task()
    assert task is not None

    def end() -> None:
        terminated.append(signal.SIGTERM)
        task.cancel()

    if threading.current_thread() is threading.main_thread():
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, end)
    return await work  # type: ignore[no-any-return]


@contextlib.contextmanager
def _heard_outside() -> Iterator[None]:
    """The loop forgets who heard SIGTERM before it did."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


# -- replay ----------------------------------------------------------------------------------------


async def replay(args: argparse.Namespace) -> int:
    """Play a file on the running cluster."""
    from im_actors.cli.chatfile import parse_rate, read_chat
    from im_actors.cli.progress import Progress

    rate = parse_rate(args.rate) if args.rate is not None else None
    lines = read_chat(args.file, args.limit)
    running = None
    if args.url is None and read_run(data_of(args)) is not None:
        running = running_cluster(data_of(args))
    with Progress(sys.stderr if args.json else sys.stdout) as progress:
        report = await play(args, lines, rate, running, progress)
        asked = len(_kinds(args))
        told = tell(report, progress, asked)
    print_json(report.to_json())
    return 0 if told else 1


def _kinds(args: argparse.Namespace) -> list[str]:
    from im_actors.cli.faults import parse_faults

    return parse_faults(args.faults)


async def play(
    args: argparse.Namespace,
    lines: Sequence[Line],
    rate: Any,
    running: Running | None,
    progress: Progress,
) -> Report:
    """One replay on a cluster, that of ``running`` or else that of --url."""
    from im_actors.cli.faults import FaultPlan
    from im_actors.cli.replay import Replay, ReplayConfig
    from im_actors.client.config import parse_url

    asked = hasattr(args, "token")
    url = parse_url(running.run.url if running is not None else url_of(args))
    gateways = [str(a) for a in url.addresses]
    if running is not None:
        gateways = await running.gateways()
    plan, secret = FaultPlan(tuple(_kinds(args))), secret_of(args) if asked else None
    if "kill-all" in plan.kinds and secret is None and asked and args.token:
        raise SetupError(
            "kill-all starts the cluster again, which needs its token secret: --token-secret-file"
        )
    if running is not None:
        plan = replace(
            plan,
            call=admin_call(running.data),
            kill_all=partial(kill_all, running.data),
            start_all=partial(start_all, running, secret),
        )
    plan.validate()
    config = ReplayConfig(clients_max=args.clients, window=args.window, rate=rate)
    conversations = len({line.conversation for line in lines})
    progress.say(
        f"playing {len(lines):,} messages in {conversations:,} conversations"
        f" through {', '.join(gateways)}"
    )
    token_for = token_maker(args) if asked else _no_token
    client = client_config(args) if asked else None
    scheme = "ims" if url.tls else "im"
    return await Replay(lines, gateways, plan, config, token_for, progress, scheme, client).run()


def _no_token(user: str) -> str | None:
    return None


def admin_call(data: Path) -> Callable[..., Awaitable[Any]]:
    """Admin calls, each on the cluster that runs from ``data`` at that moment."""

    async def call(method: str, *arguments: Any, timeout_s: float = 10.0) -> Any:
        return await running_cluster(data).call(method, *arguments, timeout_s=timeout_s)

    return call


async def kill_all(data: Path) -> None:
    """SIGKILL to every process of the cluster."""
    from im_actors.actors import deploy

    await asyncio.to_thread(deploy.kill_everything, data)


async def start_all(running: Running, token_secret: str | None) -> None:
    """Start the cluster again as it was. What it was is written down, but for the secret."""
    from im_actors.actors import deploy

    settings = running.run.settings
    names = set(deploy.UpConfig.__dataclass_fields__) & set(settings)
    changed = {
        "data": running.data,
        "operator": ClusterSettings.from_dict(settings.get("operator", {})),
        "token_secret": token_secret,
    }
    config = deploy.UpConfig(**{name: settings[name] for name in names} | changed)
    give_up_s = time.monotonic() + RESTART_S
    while True:
        try:
            await asyncio.to_thread(deploy.up, config, _quietly)
            return
        except WrongDirectory:
            # A process that was killed a moment ago may still hold its lock.
            if time.monotonic() > give_up_s:
                raise
            await asyncio.sleep(RESTART_TRY_S)


def tell(report: Report, progress: Progress, faults_asked: int) -> bool:
    """Print what a person wants to know; whether all is well."""
    verdict, fields = report.verdict, report.to_json()
    progress.say(
        f"{verdict.acked:,} of {verdict.sent:,} acked in {report.elapsed_s:.1f} s"
        f" ({fields['msgs_per_s']:,.0f} msg/s), {verdict.received:,} received,"
        f" {report.takeovers} takeovers"
    )
    for fault in report.faults:
        back = fault["recovered_s"]
        told = f"back after {back:.2f} s" if back is not None else "nothing was sent after it"
        progress.say(f"  {fault['kind']} at {fault['at_s']:.2f} s ({fault['target']}): {told}")
    for anomaly in verdict.anomalies[:ANOMALIES_SHOWN]:
        progress.say(f"  {printable(anomaly)}")
    missed = faults_asked - len(report.faults)
    if missed:
        progress.say(f"  {missed} of {faults_asked} faults could not be injected")
    progress.say(
        f"lost {verdict.lost}, duplicated {verdict.duplicated}, reordered {verdict.reordered},"
        f" gaps {verdict.gaps}, mismatched {verdict.mismatched}"
    )
    return report.ok and not missed


# -- demo ------------------------------------------------------------------------------------------


def demo(args: argparse.Namespace) -> int:
    """Everything in a temporary directory, which is gone at the end, whatever happens."""
    from im_actors.actors import deploy
    from im_actors.cli.generated import MESSAGES_DEFAULT, SEED_DEFAULT, generate
    from im_actors.cli.progress import Progress

    _kinds(args)
    seed = args.seed if args.seed is not None else SEED_DEFAULT
    lines = generate(args.messages or MESSAGES_DEFAULT, seed)
    out = sys.stderr if args.json else sys.stdout
    with Progress(out) as progress, tempfile.TemporaryDirectory(prefix="im_actors-demo-") as name:
        data = Path(name) / "data"
        start = time.monotonic()
        config = deploy.UpConfig(data=data, port=0)
        try:
            run = deploy.up(config, _quietly)
            progress.say(f"up at {run.url} after {time.monotonic() - start:.1f} s")
            report, found = run_loop_of(_demo(args, data, lines, progress))
        finally:
            end_demo(data, progress)
    well = tell(report, Progress(out, bar=False), len(_kinds(args)))
    print_json(report.to_json() | {"verify": found})
    return 0 if well and sound(found) else 1


async def _demo(
    args: argparse.Namespace, data: Path, lines: Sequence[Line], progress: Progress
) -> tuple[Report, dict[str, Any]]:
    running = running_cluster(data)
    report = await play(args, lines, None, running, progress)
    # The last fault may still be under repair, and verify counts what is not there yet.
    await running.call("wait_serving", 60.0, timeout_s=70.0)
    found: dict[str, Any] = await running.call("verify", timeout_s=VERIFY_TIMEOUT_S)
    words = "sound" if sound(found) else "NOT SOUND"
    progress.say(f"verify: {words}, {found['events']:,} events on three replicas")
    return report, found


def run_loop_of(work: Any) -> tuple[Report, dict[str, Any]]:
    """``run_loop`` for a result."""
    results: list[tuple[Report, dict[str, Any]]] = []

    async def keep() -> int:
        results.append(await work)
        return 0

    run_loop(keep())
    return results[0]


def end_demo(data: Path, progress: Progress) -> None:
    """Stop the cluster, with force if need be. Another Ctrl-C must not leave half of it behind."""
    from im_actors.actors import deploy

    with deaf():
        if read_run(data) is None:
            return
        try:
            deploy.down(data, _quietly)
        except Exception as error:
            # Nothing may be left behind, whatever it is that went wrong.
            progress.say(f"down failed, so everything is killed: {error}")
            deploy.kill_everything(data)
            deploy.down(data, _quietly)


def _quietly(text: str) -> None:
    pass


class deaf:
    """Signals that ask for an end are not heard meanwhile."""

    def __enter__(self) -> None:
        self._before: dict[int, Any] = {}
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, signal.SIG_IGN)

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
