"""group: make one, change it, see who is in it."""

from __future__ import annotations

import argparse
import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from typing import TYPE_CHECKING

from im_actors.cli.client_commands import (
    AddCommand,
    add_receipt_options,
    own_client,
    positive_seconds,
)
from im_actors.cli.conversation_commands import add_user_option, reached, settled, tell_offline
from im_actors.cli.output import print_json, printable
from im_actors.cli.target import add_client_options
from im_actors.errors import NotFound

if TYPE_CHECKING:
    from im_actors.client import Client, Groups, Sent

FOR_EVER_MS = 1 << 60

Act = Callable[["Groups", argparse.Namespace], Awaitable["Sent"]]


def register(add: AddCommand) -> None:
    parser = add(
        "group",
        "make a group, change it, or show who is in it",
        "  im-actors group create climbers bob carol --title 'The climbers' --as alice\n"
        "  im-actors group add climbers dave --as alice\n"
        "  im-actors group role climbers bob admin --as alice\n"
        "  im-actors group mute climbers bob --for 3600 --as alice\n"
        "  im-actors group members climbers --as alice --json\n"
        "  im-actors send group:climbers 'hello' --as alice",
    )
    actions = parser.add_subparsers(metavar="ACTION", required=True, help="what to do")
    for name, (summary, takes) in _CHANGES.items():
        action = _action(actions, name, summary)
        takes(action)
        add_receipt_options(action)
        action.set_defaults(run=lambda args: asyncio.run(change(args)), what=name)
    for name, summary, run in (
        ("info", "show what the group is", info),
        ("members", "show who is in it", members),
    ):
        action = _action(actions, name, summary)
        action.add_argument("--json", action="store_true", help="print it as JSON")
        action.set_defaults(run=lambda args, run=run: asyncio.run(run(args)))


def _action(
    actions: argparse._SubParsersAction[argparse.ArgumentParser], name: str, summary: str
) -> argparse.ArgumentParser:
    parser = actions.add_parser(
        name, help=summary, description=summary[0].upper() + summary[1:] + "."
    )
    parser.add_argument("group", metavar="NAME", help="the group's name")
    parser.add_argument(
        "--debug", action="store_true", default=argparse.SUPPRESS, help=argparse.SUPPRESS
    )
    add_user_option(parser, "who does it")
    add_client_options(parser)
    return parser


# -- what each change takes ------------------------------------------------------------------------


def _nothing(parser: argparse.ArgumentParser) -> None:
    pass


def _users(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("users", metavar="USER", nargs="+", help="the users")


def _new_group(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("users", metavar="USER", nargs="*", help="its first members")
    parser.add_argument("--title", help="what it is called (default: its name)")


def _role(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("member", metavar="USER", help="the member")
    parser.add_argument(
        "role",
        metavar="ROLE",
        choices=("member", "admin", "owner"),
        help="member, admin, or owner to hand the group over",
    )


def _muting(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "member", metavar="USER", nargs="?", help="the member (default: all but the admins)"
    )


def _mute(parser: argparse.ArgumentParser) -> None:
    _muting(parser)
    parser.add_argument(
        "--for",
        dest="seconds",
        metavar="S",
        type=positive_seconds,
        help="for so many seconds (default: until it is taken back)",
    )


def _title(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("title", metavar="TITLE", help="what it is called from now on")


def _joining(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("allowed", metavar="yes|no", choices=("yes", "no"), help="may they?")


_CHANGES: dict[str, tuple[str, Callable[[argparse.ArgumentParser], None]]] = {
    "create": ("make a group", _new_group),
    "add": ("make users members", _users),
    "remove": ("end users' membership", _users),
    "join": ("become a member", _nothing),
    "leave": ("end one's membership", _nothing),
    "role": ("change what a member is", _role),
    "mute": ("let a member, or all, send no more", _mute),
    "unmute": ("let a member, or all, send again", _muting),
    "title": ("rename the group", _title),
    "joining": ("whether anybody may join by himself", _joining),
    "dissolve": ("end the group", _nothing),
}
_ACTS: dict[str, Act] = {
    "create": lambda groups, args: groups.create(args.group, args.title or args.group, args.users),
    "add": lambda groups, args: groups.add(args.group, *args.users),
    "remove": lambda groups, args: groups.remove(args.group, *args.users),
    "join": lambda groups, args: groups.join(args.group),
    "leave": lambda groups, args: groups.leave(args.group),
    "role": lambda groups, args: groups.role(args.group, args.member, args.role),
    "mute": lambda groups, args: groups.mute(args.group, args.member, _until_ms(args.seconds)),
    "unmute": lambda groups, args: groups.mute(args.group, args.member, 0),
    "title": lambda groups, args: groups.title(args.group, args.title),
    "joining": lambda groups, args: groups.joining(args.group, args.allowed == "yes"),
    "dissolve": lambda groups, args: groups.dissolve(args.group),
}


def _until_ms(seconds: float | None) -> int:
    return FOR_EVER_MS if seconds is None else int((time.time() + seconds) * 1000)


# -- the commands ----------------------------------------------------------------------------------


async def change(args: argparse.Namespace) -> int:
    async with own_client(args, wait=True) as im:
        sent = await _ACTS[args.what](im.groups, args)
        return await settled(im, sent, args, f"{args.what}: done in {sent.session}")


async def info(args: argparse.Namespace) -> int:
    async with own_client(args, wait=False) as im:
        await reached(im)
        found = await im.groups.info(args.group)
        if found is None:
            raise NotFound(f"this computer knows nothing of group {args.group!r}{_why(im)}")
        if args.json:
            print_json(asdict(found))
        else:
            state = ", dissolved" if found.dissolved_ms else ""
            role = f", you are {found.role}" if found.role else ", you are no member"
            print(
                f"{printable(found.title)}  ({printable(found.session)}): {found.members} members,"
                f" owner {printable(found.owner)}{role}{state}",
                flush=True,
            )
        if found.offline:
            tell_offline(im, 0)
    return 1 if found.offline else 0


async def members(args: argparse.Namespace) -> int:
    """All of them; without a server those that are known."""
    async with own_client(args, wait=False) as im:
        await reached(im)
        after: str | None = None
        while True:
            page = await im.groups.members(args.group, after)
            for member in page.members:
                if args.json:
                    print_json(member._asdict())
                else:
                    print(f"{printable(member.user)}  {member.role}", flush=True)
            after = page.next
            if after is None:
                break
        if page.offline:
            tell_offline(im, 0)
    return 1 if page.offline else 0


def _why(im: Client) -> str:
    error = im.status().last_error
    return f": {error}" if error else ""
