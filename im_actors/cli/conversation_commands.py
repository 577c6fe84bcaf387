"""conversations, read, recall, edit and devices: the user side for the shell."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
from dataclasses import asdict
from datetime import datetime
from typing import TYPE_CHECKING, Any

from im_actors.cli.client_commands import (
    HISTORY_WAIT_S,
    AddCommand,
    add_receipt_options,
    own_client,
    positive_number,
    receipt,
)
from im_actors.cli.output import note, print_json, printable
from im_actors.cli.target import add_client_options, login_name
from im_actors.errors import NotFound, RetryableError

if TYPE_CHECKING:
    from im_actors.client import Client, Conversation, ConversationList, Sent

LIST_MAX = 100


def register(add: AddCommand) -> None:
    _register_conversations(add)
    _register_read(add)
    _register_recall(add)
    _register_edit(add)
    _register_devices(add)


def _register_conversations(add: AddCommand) -> None:
    parser = add(
        "conversations",
        "show a user's conversations with their unread counts, newest first",
        "  im-actors conversations --as alice\n"
        "  im-actors conversations --as alice --unread --json | jq .unread\n"
        "  im-actors conversations --as alice --label later --limit 100\n\n"
        "Without a server it shows what this computer knew last, and exits with 1.",
    )
    add_user_option(parser, "whose")
    parser.add_argument(
        "--limit",
        metavar="N",
        type=positive_number,
        default=25,
        help=f"how many, up to {LIST_MAX} (default: 25)",
    )
    parser.add_argument("--after", metavar="NEXT", help='go on after a page: its "next"')
    parser.add_argument("--unread", action="store_true", help="only those with something unread")
    parser.add_argument("--label", default="", help="what is folded under this label")
    parser.add_argument("--json", action="store_true", help="print the page as one JSON object")
    add_client_options(parser)
    parser.set_defaults(run=lambda args: asyncio.run(conversations(args)))


def _register_read(add: AddCommand) -> None:
    parser = add(
        "read",
        "mark a conversation as read",
        "  im-actors read direct:alice/bob --as alice\n"
        "  im-actors read team 120 --as alice\n\n"
        "It is kept on this computer when no server answers, like a message.",
    )
    parser.add_argument("session", metavar="SESSION", help="the conversation")
    parser.add_argument(
        "seq",
        metavar="SEQ",
        nargs="?",
        type=positive_number,
        help="up to this number (default: up to the last)",
    )
    add_user_option(parser, "who reads")
    add_receipt_options(parser)
    add_client_options(parser)
    parser.set_defaults(run=lambda args: asyncio.run(read(args)))


def _register_recall(add: AddCommand) -> None:
    parser = add(
        "recall",
        "take a message back, for everybody",
        "  im-actors recall team 42 --as alice",
    )
    _add_message(parser, "who sent it")
    parser.set_defaults(run=lambda args: asyncio.run(recall(args)))


def _register_edit(add: AddCommand) -> None:
    parser = add(
        "edit",
        "give a message a new text, for everybody",
        "  im-actors edit team 42 'hello, all' --as alice",
    )
    _add_message(parser, "who sent it")
    parser.add_argument("text", metavar="TEXT", help="the new text")
    parser.set_defaults(run=lambda args: asyncio.run(edit(args)))


def _register_devices(add: AddCommand) -> None:
    parser = add(
        "devices",
        "show a user's devices, or cut one off",
        "  im-actors devices --as alice\n  im-actors devices --as alice --kick phone-3f9a2c71",
    )
    add_user_option(parser, "whose")
    parser.add_argument("--kick", metavar="DEVICE", help="cut this one off")
    add_receipt_options(parser)
    add_client_options(parser)
    parser.set_defaults(run=lambda args: asyncio.run(devices(args)))


def _add_message(parser: argparse.ArgumentParser, who: str) -> None:
    parser.add_argument("session", metavar="SESSION", help="the conversation")
    parser.add_argument("seq", metavar="SEQ", type=positive_number, help="the message's number")
    add_user_option(parser, who)
    add_receipt_options(parser)
    add_client_options(parser)


def add_user_option(parser: argparse.ArgumentParser, who: str) -> None:
    parser.add_argument(
        "--as",
        dest="user",
        metavar="USER",
        default=login_name(),
        help=f"{who} (default: your name here)",
    )


# -- the commands ----------------------------------------------------------------------------------


async def conversations(args: argparse.Namespace) -> int:
    """One page. No server is a failure, although something is shown."""
    async with own_client(args, wait=False, mailbox=True) as im:
        await reached(im)
        page = await im.conversations(
            min(args.limit, LIST_MAX), args.after, unread_only=args.unread, label=args.label
        )
        if args.json:
            print_json(_page_fields(page))
        else:
            for found in page.conversations:
                print(conversation_line(found), flush=True)
            if page.next:
                note(f"im-actors: more: --after '{page.next}'")
        if page.offline:
            tell_offline(im, page.as_of_ms)
    return 1 if page.offline else 0


def _page_fields(page: ConversationList) -> dict[str, Any]:
    return {
        "conversations": [conversation_fields(found) for found in page.conversations],
        "unread": page.unread,
        "next": page.next,
        "offline": page.offline,
        "as_of_ms": page.as_of_ms,
    }


def conversation_fields(found: Conversation) -> dict[str, Any]:
    """A conversation for programs."""
    fields = asdict(found)
    fields["kind"] = found.kind.name.lower()
    fields["inputs"] = found.inputs and found.inputs._asdict()
    return fields


def conversation_line(found: Conversation) -> str:
    """A conversation for people."""
    at = datetime.fromtimestamp(found.time_ms / 1000).strftime("%Y-%m-%d %H:%M")
    unread = f"{found.unread:>4}" if found.unread else "    "
    marks = [name for name in ("pinned", "muted", "hidden", "left") if getattr(found, name)] + (
        [f"{found.pending} pending"] if found.pending else []
    )
    told = f" [{', '.join(marks)}]" if marks else ""
    gone = {"RECALL": ": recalled", "DROPPED": ": (content was dropped)"}
    last = gone.get(found.kind.name, f": {found.preview}")
    says = f"  {found.sender}{last}" if found.sender else ""
    return f"{unread} {at}  {printable(found.title)}  ({printable(found.session)}){told}" + (
        printable(says).replace("\n    ", " ")
    )


async def read(args: argparse.Namespace) -> int:
    """Mark it as read; without a number up to the last event that is known."""
    async with own_client(args, wait=True) as im:
        seq = args.seq
        if seq is None:
            await reached(im)
            found = await im.conversation(args.session)
            if found is None or not found.last_seq:
                raise NotFound(f"nothing is known of {args.session!r}: say up to which number")
            seq = found.last_seq
        sent = await im.mark_read(args.session, seq)
        return await settled(im, sent, args, f"read up to #{seq} in {args.session}")


async def recall(args: argparse.Namespace) -> int:
    async with own_client(args, wait=True) as im:
        sent = await im.recall(args.session, args.seq)
        return await settled(im, sent, args, f"recalled #{args.seq} in {args.session}")


async def edit(args: argparse.Namespace) -> int:
    async with own_client(args, wait=True) as im:
        sent = await im.edit(args.session, args.seq, args.text)
        return await settled(im, sent, args, f"edited #{args.seq} in {args.session}")


async def devices(args: argparse.Namespace) -> int:
    async with own_client(args, wait=True, mailbox=True) as im:
        if args.kick is not None:
            sent = await im.kick(args.kick)
            return await settled(im, sent, args, f"{args.kick} is cut off")
        online = await reached(im)
        found = await im.devices()
        if args.json:
            print_json([device._asdict() for device in found])
        else:
            for device in found:
                since = datetime.fromtimestamp(device.since_ms / 1000).strftime("%Y-%m-%d")
                state = "online" if device.online else "away"
                about = printable(device.about)
                print(f"{printable(device.device)}  {state}, since {since}  {about}", flush=True)
        if not online:
            tell_offline(im, 0)
    return 0 if online else 1


# -- shared with the groups ------------------------------------------------------------------------


async def settled(im: Client, sent: Sent, args: argparse.Namespace, done: str) -> int:
    """Wait for the receipt of a change and say what became of it."""
    ack = await receipt(im, sent, args, "change")
    if args.json:
        print_json({"session": ack.session, "n": ack.n, "seq": ack.seq, "copies": ack.copies})
    else:
        print(printable(done), flush=True)
    return 0


async def reached(im: Client) -> bool:
    """Give the connection a moment; whether it is there."""
    with contextlib.suppress(RetryableError):
        await im.connected(HISTORY_WAIT_S)
        return True
    return False


def tell_offline(im: Client, as_of_ms: int) -> None:
    why = im.status().last_error or "no server answers"
    known = ""
    if as_of_ms:
        known = datetime.fromtimestamp(as_of_ms / 1000).strftime(" at %Y-%m-%d %H:%M:%S")
    note(f"im-actors: this is what this computer knew{known}: {why}")
