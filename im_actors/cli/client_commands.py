"""send, tail and history: a client for the shell."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import TYPE_CHECKING

from im_actors.cli.output import event_fields, event_line, note, print_json
from im_actors.cli.target import (
    add_client_options,
    client_config,
    login_name,
    store_of,
    url_of,
)
from im_actors.errors import ImError, RetryableError, Unknown, WrongDirectory

if TYPE_CHECKING:
    from im_actors.client import Ack, Client, Event, Sent

DEVICE = "cli"
RECENT = 10
STORE_WAIT_S = 10.0
HISTORY_WAIT_S = 2.0
STORE_TRY_S = 0.05

AddCommand = Callable[[str, str, str], argparse.ArgumentParser]


def register(add: AddCommand) -> None:
    _register_send(add)
    _register_tail(add)
    _register_history(add)


def _register_send(add: AddCommand) -> None:
    parser = add(
        "send",
        "send one message and wait until it is on three disks",
        "  im-actors send team 'hello' --as alice\n"
        "  git log -1 | im-actors send deploys - --as ci\n"
        "  im-actors send team 'see you' --as alice --no-wait\n\n"
        "A message that finds no server is kept on this computer, and the next im-actors command\n"
        "of the same user sends it. Exit code 0 means that it is on three disks (with --no-wait:\n"
        "that it is on this one).",
    )
    parser.add_argument("session", metavar="SESSION", help="the conversation")
    parser.add_argument("text", metavar="TEXT", help="the message; - reads standard input")
    parser.add_argument("--as", dest="user", metavar="USER", required=True, help="who sends")
    parser.add_argument(
        "--wait",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="wait for the receipt (default), or return when it is saved here",
    )
    add_receipt_options(parser)
    add_client_options(parser)
    parser.set_defaults(run=lambda args: asyncio.run(send(args)))


def _register_tail(add: AddCommand) -> None:
    parser = add(
        "tail",
        "show a conversation as it goes on, until Ctrl-C",
        "  im-actors tail team --as bob\n"
        "  im-actors tail team --as bob --after 0 --json | jq .text\n"
        "  im-actors tail team --as bob --after 120 --count 10",
    )
    parser.add_argument("session", metavar="SESSION", help="the conversation")
    parser.add_argument("--as", dest="user", metavar="USER", required=True, help="who reads")
    parser.add_argument(
        "--after",
        metavar="SEQ",
        type=whole_number,
        help=f"begin after this number; 0 is everything (default: the last {RECENT})",
    )
    parser.add_argument(
        "--count", metavar="N", type=positive_number, help="end after so many messages"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    add_client_options(parser)
    parser.set_defaults(run=lambda args: asyncio.run(tail(args)))


def _register_history(add: AddCommand) -> None:
    parser = add(
        "history",
        "show the last messages of a conversation",
        "  im-actors history team\n"
        "  im-actors history team --as bob --limit 200 --before 1000 --json\n\n"
        "Without a server it shows what this computer has of the conversation, and exits with 1.",
    )
    parser.add_argument("session", metavar="SESSION", help="the conversation")
    parser.add_argument(
        "--as",
        dest="user",
        metavar="USER",
        default=login_name(),
        help="who reads (default: your name here)",
    )
    parser.add_argument(
        "--before", metavar="SEQ", type=positive_number, help="only what came before this number"
    )
    parser.add_argument(
        "--limit", metavar="N", type=positive_number, default=50, help="how many (default: 50)"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    add_client_options(parser)
    parser.set_defaults(run=lambda args: asyncio.run(history(args)))


# -- the commands ----------------------------------------------------------------------------------


async def send(args: argparse.Namespace) -> int:
    """Keep the message, then deliver it."""
    text = sys.stdin.read().removesuffix("\n") if args.text == "-" else args.text
    async with own_client(args, wait=True) as im:
        sent = await im.send(args.session, text)
        if not args.wait:
            if args.json:
                print_json({"session": args.session, "n": sent.n, "state": "pending"})
            else:
                print("kept: it is on its way, or goes with the next command", flush=True)
            return 0
        ack = await receipt(im, sent, args)
    if args.json:
        fields = {"session": ack.session, "n": ack.n, "seq": ack.seq, "epoch": ack.epoch}
        print_json(fields | {"copies": ack.copies, "time_ms": ack.time_ms})
    else:
        print(f"#{ack.seq} in {ack.session}, on {ack.copies} disks", flush=True)
    return 0


async def receipt(im: Client, sent: Sent, args: argparse.Namespace, what: str = "message") -> Ack:
    """Wait for it as long as ``args.timeout`` says; an error says that it is kept, or refused."""
    try:
        return await sent.acked(args.timeout)
    except ImError as error:
        if sent.error is not None:
            raise
        why: object = error
        if isinstance(error, Unknown):
            why = im.status().last_error or "the server is silent"
        raise type(error)(
            f"no receipt yet: {why}. The {what} is kept on this computer and goes with"
            f" the next im-actors command of {args.user}"
        ) from None


async def tail(args: argparse.Namespace) -> int:
    """History and live as one stream."""
    async with reading_client(args, "tail") as im:
        after = args.after
        if after is None:
            await im.connected()
            recent = await im.history(args.session, limit=RECENT)
            after = recent.events[0].seq - 1 if recent.events else 0
        left = args.count
        async with im.follow(args.session, after=after) as follower:
            async for event in follower:
                show(event, args.json)
                left = None if left is None else left - 1
                if left == 0:
                    break
    return 0


async def history(args: argparse.Namespace) -> int:
    """One page. A conversation that is empty is a success; no server is not."""
    async with own_client(args, wait=False) as im:
        with contextlib.suppress(RetryableError):
            await im.connected(HISTORY_WAIT_S)
        page = await im.history(args.session, args.before, args.limit)
        for event in page.events:
            show(event, args.json)
        if page.offline:
            why = im.status().last_error or "no server answers"
            note(f"im-actors: this is what this computer has of {args.session!r}: {why}")
    return 1 if page.offline else 0


def show(event: Event, as_json: bool) -> None:
    if as_json:
        print_json(event_fields(event))
    else:
        print(event_line(event), flush=True)


# -- clients ---------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def own_client(
    args: argparse.Namespace, wait: bool, mailbox: bool = False
) -> AsyncIterator[Client]:
    """The user's own client with its file. Another command may be using the file: ``wait`` for it,
    or else do without, which is enough for reading. ``mailbox``: keep the conversation list up to
    date meanwhile."""
    from im_actors.client import Client

    path: Path | None = store_of(args, args.user, DEVICE)
    give_up_s = time.monotonic() + STORE_WAIT_S
    config = client_config(args, mailbox=mailbox)
    client = Client(url_of(args), args.user, DEVICE, path, args.token, config=config)
    while True:
        try:
            await client.__aenter__()
            break
        except WrongDirectory:
            if not wait:
                path = None
            elif time.monotonic() > give_up_s:
                raise
            await asyncio.sleep(STORE_TRY_S)
            client = Client(url_of(args), args.user, DEVICE, path, args.token, config=config)
    try:
        yield client
    except BaseException as error:
        await client.__aexit__(type(error), error, error.__traceback__)
        raise
    else:
        await client.__aexit__(None, None, None)


@contextlib.asynccontextmanager
async def reading_client(args: argparse.Namespace, device: str) -> AsyncIterator[Client]:
    """A client that only reads, and so needs no file. What the user's own file still holds from
    commands that met no server is sent meanwhile."""
    from im_actors.client import Client

    config = client_config(args, mailbox=False)
    leftovers = asyncio.create_task(send_leftovers(args))
    try:
        url = url_of(args)
        async with Client(url, args.user, device, None, args.token, config=config) as client:
            await _refusal(client)
            yield client
    finally:
        leftovers.cancel()
        await asyncio.gather(leftovers, return_exceptions=True)


async def _refusal(client: Client) -> None:
    """Say at once when the server does not want this user; only wait for one that is away."""
    try:
        await client.connected(3.0)
    except RetryableError as error:
        note(f"im-actors: {error}; waiting for it")


async def send_leftovers(args: argparse.Namespace) -> None:
    """Deliver what is still in the user's file, and let go of the file."""
    if not store_of(args, args.user, DEVICE).exists():
        return
    from im_actors.client import Client

    config = client_config(args, mailbox=False)
    path = store_of(args, args.user, DEVICE)
    with contextlib.suppress(ImError):  # in use: whoever uses it sends what it holds
        url = url_of(args)
        async with Client(url, args.user, DEVICE, path, args.token, config=config) as client:
            for sent in client.outbox():
                with contextlib.suppress(ImError):
                    await sent.acked()


# -- arguments -------------------------------------------------------------------------------------


def add_receipt_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--timeout",
        metavar="S",
        type=positive_seconds,
        default=10.0,
        help="how long to wait for the receipt (default: 10)",
    )
    parser.add_argument("--json", action="store_true", help="print the receipt as JSON")


def positive_number(text: str) -> int:
    return _number(text, 1)


def whole_number(text: str) -> int:
    return _number(text, 0)


def _number(text: str, least: int) -> int:
    try:
        value = int(text)
    except ValueError:
        value = least - 1
    if value < least:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from {least} on")
    return value


def positive_seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 1e6:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds")
    return value
