"""broadcast: one message to everybody in a file."""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import asdict
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any

from im_actors.cli.client_commands import AddCommand, add_receipt_options, own_client, receipt
from im_actors.cli.conversation_commands import add_user_option, settled
from im_actors.cli.output import note, print_json, printable
from im_actors.cli.progress import Progress
from im_actors.cli.target import add_client_options
from im_actors.core.batch import CHANNELS, CONTENT_BYTES_MAX, NAME_BYTES_MAX, chunked
from im_actors.core.model import check_name
from im_actors.core.names import NOTICE_CHANNELS
from im_actors.errors import BadRequest, Forbidden, NotFound, RetryableError, SetupError, TooLarge

if TYPE_CHECKING:
    from im_actors.client import BatchInfo, Client, Sent

ACTIONS = ("status", "pause", "resume", "cancel", "recall")
CHUNKS_ON_THEIR_WAY = 32
POLL_S = 0.5
BAD_LINES_SHOWN = 5
DIGEST_BYTES = 5


def register(add: AddCommand) -> None:
    parser = add(
        "broadcast",
        "send one message to many users",
        "  im-actors broadcast users.txt --as shop --channel daily --text 'Summer sale!'\n"
        "  im-actors broadcast users.jsonl --as shop --channel high --content outage.txt --json\n"
        "  im-actors broadcast users.txt --as shop --text 'Summer sale!' --dry-run\n"
        "  im-actors broadcast status NAME --as shop\n"
        "  im-actors broadcast pause|resume|cancel|recall NAME --as shop\n\n"
        'FILE has one user a line; a line that begins with { is a JSON object with "user". USER\n'
        "has to be a service of the cluster. The servers send it: once they have the list this\n"
        "command may be stopped. The same command again goes on where the first one was, and\n"
        "never sends twice: its name comes from the file, the message and USER (or from --name).\n"
        "Exit code 0 means that everybody got it.",
    )
    parser.add_argument("file", metavar="FILE|ACTION", help="the users, or what to do with NAME")
    parser.add_argument("batch", metavar="NAME", nargs="?", help="the broadcast of an ACTION")
    add_user_option(parser, "the service that sends")
    parser.add_argument(
        "--channel", choices=CHANNELS, default="daily", help="whose quota (default: daily)"
    )
    parser.add_argument(
        "--notice",
        choices=NOTICE_CHANNELS,
        default="system",
        help="the users' channel that it appears in (default: system)",
    )
    text = parser.add_mutually_exclusive_group()
    text.add_argument("--text", help="the message")
    text.add_argument("--content", metavar="FILE", help="a file with the message")
    parser.add_argument("--name", help="what it is called (default: from what it is)")
    parser.add_argument(
        "--dry-run", action="store_true", help="count and check everything, send nothing"
    )
    parser.add_argument(
        "--wait",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="wait until everybody has been sent to (default), or only until it has begun",
    )
    add_receipt_options(parser)
    add_client_options(parser)
    parser.set_defaults(run=lambda args: asyncio.run(broadcast(args)))


async def broadcast(args: argparse.Namespace) -> int:
    if args.file in ACTIONS:
        return await act(args)
    if args.batch is not None:
        raise SetupError(f"{args.file!r} is no action, only {', '.join(ACTIONS)}")
    content = read_content(args)
    users = read_users(Path(args.file))
    name = name_of(args, content, users)
    started = time.monotonic()
    async with own_client(args, wait=True) as im:
        await im.connected(args.timeout)
        info = await order(im, name, args, content, users)
        if args.wait:
            info = await watch(im, name, args)
    return report(info, args, time.monotonic() - started)


# -- what is to be sent ----------------------------------------------------------------------------


def read_content(args: argparse.Namespace) -> bytes:
    if args.text is None and args.content is None:
        raise SetupError("say what to send: --text TEXT or --content FILE")
    try:
        content = args.text.encode() if args.text is not None else Path(args.content).read_bytes()
        content.decode()
    except OSError as error:
        raise SetupError(f"{args.content}: {error.strerror}") from None
    except UnicodeError:
        raise BadRequest("the message is not UTF-8 text") from None
    if not content:
        raise BadRequest("the message is empty")
    if len(content) > CONTENT_BYTES_MAX:
        raise TooLarge(f"the message is {len(content)} bytes, the limit is {CONTENT_BYTES_MAX}")
    return bytes(content)


def read_users(path: Path) -> list[str]:
    """The users of a file, each once, in order. An error names the lines that are no users."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except OSError as error:
        raise SetupError(f"{path}: {error.strerror}") from None
    except UnicodeError:
        raise BadRequest(f"{path} is not UTF-8 text") from None
    users: dict[str, None] = {}
    bad: list[str] = []
    for number, line in enumerate(lines, 1):
        try:
            users.update(dict.fromkeys(_users_of(line.strip())))
        except (BadRequest, TooLarge) as error:
            bad.append(f"line {number}: {error}")
    if bad:
        more = f"; and {len(bad) - BAD_LINES_SHOWN} more" if len(bad) > BAD_LINES_SHOWN else ""
        raise BadRequest(f"{path}: {'; '.join(bad[:BAD_LINES_SHOWN])}{more}")
    if not users:
        raise BadRequest(f"{path} names nobody")
    return list(users)


def _users_of(line: str) -> Iterator[str]:
    if not line:
        return
    if not line.startswith("{"):
        yield check_name("the user", line)
        return
    try:
        user = json.loads(line)["user"]
    except (ValueError, KeyError):
        raise BadRequest('no JSON object with "user"') from None
    yield check_name("the user", user)


def name_of(args: argparse.Namespace, content: bytes, users: list[str]) -> str:
    """What the broadcast is called. The same command means the same broadcast."""
    if args.name is not None:
        return str(args.name)
    said = [args.user, args.channel, args.notice, content.decode(), *users]
    digest = blake2b("\0".join(said).encode(), digest_size=DIGEST_BYTES).hexdigest()
    ending = f"-{digest}" + (".dry" if args.dry_run else "")
    stem = "".join(c for c in Path(args.file).stem if c.isalnum() or c in "-_") or "broadcast"
    while len((stem + ending).encode()) > NAME_BYTES_MAX:
        stem = stem[:-1]
    return stem + ending


# -- ordering --------------------------------------------------------------------------------------


async def order(
    im: Client, name: str, args: argparse.Namespace, content: bytes, users: list[str]
) -> BatchInfo:
    """Bring the servers the message and the list, as far as they do not have them, and start."""
    info = await im.batches.status(name)
    if info is None:
        created = await im.batches.create(
            name, content, args.channel, notice=args.notice, total=len(users), dry=args.dry_run
        )
        await receipt(im, created, args, "broadcast")
        info = await status_of(im, name)
    elif (info.total, info.channel, info.dry) != (len(users), args.channel, args.dry_run):
        raise Forbidden(f"there is another broadcast {name!r}: choose another --name")
    if info.state != "open":
        note(f"im-actors: {printable(name)} was ordered before; it is {info.state}")
        return info
    await upload(im, name, args, users, info.chunks)
    await receipt(im, await im.batches.start(name), args, "start")
    return await status_of(im, name)


async def upload(
    im: Client, name: str, args: argparse.Namespace, users: list[str], there: int
) -> None:
    """Send the chunks that are not there. The last of those that are goes again: if it is of other
    users, that is refused."""
    chunks = chunked(users)
    on_their_way: deque[tuple[Sent, int]] = deque()
    with Progress(sys.stderr, not args.json, "uploaded", "users") as progress:
        done = sum(map(len, chunks[: max(0, there - 1)]))
        for number in range(max(0, there - 1), len(chunks)):
            sent = await im.batches.recipients(name, number, chunks[number])
            on_their_way.append((sent, len(chunks[number])))
            while len(on_their_way) >= CHUNKS_ON_THEIR_WAY:
                done += await _arrived(im, on_their_way, args)
                progress.moved(done, len(users))
        while on_their_way:
            done += await _arrived(im, on_their_way, args)
            progress.moved(done, len(users))


async def _arrived(
    im: Client, on_their_way: deque[tuple[Sent, int]], args: argparse.Namespace
) -> int:
    sent, users = on_their_way.popleft()
    await receipt(im, sent, args, "list of users")
    return users


async def watch(im: Client, name: str, args: argparse.Namespace) -> BatchInfo:
    """Until nothing happens to it any more. A server that is away is waited for."""
    with Progress(sys.stderr, not args.json, "sent", "users") as progress:
        while True:
            try:
                info = await status_of(im, name)
            except RetryableError:
                await asyncio.sleep(POLL_S)
                continue
            progress.moved(info.told, info.recipients)
            if info.at_rest:
                return info
            await asyncio.sleep(POLL_S)


async def status_of(im: Client, name: str) -> BatchInfo:
    info = await im.batches.status(name)
    if info is None:
        raise NotFound(f"there is no broadcast {name!r}")
    return info


# -- later on --------------------------------------------------------------------------------------


async def act(args: argparse.Namespace) -> int:
    """status, pause, resume, cancel, recall."""
    what, name = args.file, args.batch
    if name is None:
        raise SetupError(f"{what}: name the broadcast, as it was printed when it was ordered")
    async with own_client(args, wait=what != "status") as im:
        await im.connected(args.timeout)
        if what == "status":
            return report(await status_of(im, name), args, None)
        sent = await getattr(im.batches, what)(name)
        return await settled(im, sent, args, f"{what}: done with {name}")


def report(info: BatchInfo, args: argparse.Namespace, elapsed_s: float | None) -> int:
    """Say how it stands; 0 unless somebody did not get what he should."""
    name = info.session.partition(":")[2]
    if args.json:
        fields: dict[str, Any] = {"name": name} | asdict(info) | {"told": info.told}
        if elapsed_s is not None:
            fields["elapsed_s"] = round(elapsed_s, 3)
        print_json(fields)
    else:
        verb = "would get it" if info.dry else "sent"
        parts = [f"{info.sent} of {max(info.total, info.recipients)} {verb}"]
        parts += [f"{info.refused} refused"] if info.refused else []
        unsent = info.recipients - info.sent - info.refused if info.settled else 0
        parts += [f"{unsent} not sent"] if unsent else []
        if info.state in ("recalling", "recalled"):
            parts.append(f"{info.recalled} recalled")
            parts += [f"{info.unrecalled} could not be"] if info.unrecalled else []
        print(f"{printable(name)}: {info.state}; {', '.join(parts)}", flush=True)
    failed = info.refused or info.unrecalled or info.state in ("cancelled", "cancelling")
    return 1 if failed and elapsed_s is not None else 0
