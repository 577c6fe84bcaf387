"""chat: conversations in a terminal, on the full screen or line by line."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import importlib.util
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING

from im_actors.cli import chat_lines
from im_actors.cli.chat_help import COMMANDS, KEYS
from im_actors.cli.client_commands import AddCommand, send_leftovers
from im_actors.cli.target import add_client_options, client_config, store_of, url_of
from im_actors.cli.terminal import Plain, Terminal
from im_actors.errors import WrongDirectory

if TYPE_CHECKING:
    from im_actors.client import Client

DEVICE = "chat"
CHATS_PER_USER_MAX = 8


def register(add: AddCommand) -> None:
    parser = add(
        "chat",
        "talk: the conversations on the left, one of them on the right",
        "  im-actors chat alice\n"
        "  im-actors chat alice team\n"
        "  im-actors chat bob direct:alice/bob --url im://chat.example:7070\n"
        "  echo 'deployed' | im-actors chat ci team\n\n"
        f"keys:\n{KEYS}\n\n"
        f"commands:\n{COMMANDS}\n\n"
        "Without a terminal, or with --plain, it goes line by line; its commands are then:\n"
        f"{chat_lines.HELP}\n\n"
        "Exit code 0 after /quit, Ctrl-D or the end of input, 130 after Ctrl-C. What is pending\n"
        "is kept on this computer and sent next time.",
    )
    parser.add_argument("user", metavar="USER", help="who talks")
    parser.add_argument("session", metavar="SESSION", nargs="?", help="the conversation")
    parser.add_argument(
        "--plain", action="store_true", help="line by line, also where there is a terminal"
    )
    add_client_options(parser)
    parser.set_defaults(run=lambda args: asyncio.run(chat(args)))


async def chat(args: argparse.Namespace) -> int:
    """Until the user leaves, or standard input ends."""
    leftovers = asyncio.create_task(send_leftovers(args))
    try:
        async with _opened(args) as client:
            if full_screen(args):
                from im_actors.cli.chat_screen import run_screen

                return await run_screen(client, args.user, args.session)
            async with Terminal() if _can_move_the_cursor() else Plain() as screen:
                return await chat_lines.Chat(client, screen).run(args.session)
    finally:
        leftovers.cancel()
        await asyncio.gather(leftovers, return_exceptions=True)


def full_screen(args: argparse.Namespace) -> bool:
    """Whether there is a screen to draw on. What --debug logs would be written across it."""
    if args.plain or args.debug or not _can_move_the_cursor():
        return False
    return importlib.util.find_spec("prompt_toolkit") is not None


def _can_move_the_cursor() -> bool:
    is_terminal = sys.stdin.isatty() and sys.stdout.isatty()
    return is_terminal and os.environ.get("TERM", "dumb") not in ("", "dumb")


@contextlib.asynccontextmanager
async def _opened(args: argparse.Namespace) -> AsyncIterator[Client]:
    """A user may chat in several terminals: each has a file and a device of its own."""
    from im_actors.client import Client

    url, config = url_of(args), client_config(args)
    async with contextlib.AsyncExitStack() as stack:
        for number in range(1, CHATS_PER_USER_MAX + 1):
            device = DEVICE if number == 1 else f"{DEVICE}-{number}"
            path: Path = store_of(args, args.user, device)
            with contextlib.suppress(WrongDirectory):
                client = Client(url, args.user, device, path, args.token, config=config)
                await stack.enter_async_context(client)
                break
        else:
            raise WrongDirectory(f"{args.user} chats in {CHATS_PER_USER_MAX} terminals already")
        yield client
