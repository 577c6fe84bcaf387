"""The full-screen chat on a terminal: keys in, lines out. What they mean is the desk's business."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from prompt_toolkit.application import Application
from prompt_toolkit.buffer import Buffer
from prompt_toolkit.filters import Condition
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.layout import (
    ConditionalContainer,
    Dimension,
    HSplit,
    Layout,
    UIContent,
    UIControl,
    VSplit,
    Window,
)
from prompt_toolkit.widgets import TextArea

from im_actors.cli import chat_view
from im_actors.cli.chat_desk import Desk
from im_actors.cli.chat_model import Model
from im_actors.cli.chat_view import Line
from im_actors.cli.output import note

if TYPE_CHECKING:
    from im_actors.client import Client

EXIT_INTERRUPTED = 130
ESCAPE_WAIT_S = 0.1
"""A lone escape is told from the beginning of another key by what does not follow within this."""
INPUT_ROWS_MAX = 4


async def run_screen(client: Client, user: str, session: str | None) -> int:
    """Until the user leaves; the exit code."""
    model = Model(user, client.address, int(time.time() * 1000))
    screen = Screen(Desk(client, model, lambda: None))
    async with screen.desk:
        if session:
            screen.desk.open(session)
        code = await screen.run()
    left = client.status().pending
    if left and not client.status().online:
        note(f"im-actors: {left} pending: kept on this computer, sent next time")
    return code


class _Lines(UIControl):
    """A part of the screen that is drawn anew for each size that it gets."""

    def __init__(self, draw: Callable[[int, int], list[Line]]) -> None:
        self._draw = draw

    def create_content(self, width: int, height: int | None) -> UIContent:
        lines = self._draw(width, height or 1)
        return UIContent(get_line=lambda at: [*lines[at]], line_count=len(lines), show_cursor=False)


class Screen:
    """The layout and the keys."""

    def __init__(self, desk: Desk) -> None:
        self.desk = desk
        self._model = desk.model
        self._size = (1, 1)
        self._shown = ("", 0)
        """The session that is drawn, and the greatest seq of it."""
        self._input = TextArea(
            # For what is pasted; enter sends.
            multiline=True,
            wrap_lines=True,
            height=Dimension(min=1, max=INPUT_ROWS_MAX),
            dont_extend_height=True,
            prompt=lambda: chat_view.prompt_text(self._model),
            accept_handler=self._accepted,
        )
        self._input.buffer.on_text_changed += lambda buffer: desk.typed(buffer.text)
        self._app: Application[int] = Application(
            layout=Layout(self._layout(), focused_element=self._input),
            key_bindings=self._keys(),
            full_screen=True,
            after_render=lambda _: desk.shown(*self._shown),
        )
        self._app.ttimeoutlen = self._app.timeoutlen = ESCAPE_WAIT_S
        desk.changed = self._app.invalidate
        desk.leave = lambda: self._leave(0)
        desk.give_back = self._give_back
        desk.failed = self._failed

    async def run(self) -> int:
        # A terminal that is gone is the end of the input.
        with contextlib.suppress(EOFError):
            return await self._app.run_async(set_exception_handler=False)
        return 0

    def _leave(self, code: int) -> None:
        if self._app.is_running and not self._app.future.done():  # type: ignore[union-attr]
            self._app.exit(result=code)

    def _failed(self, error: BaseException) -> None:
        if self._app.is_running and not self._app.future.done():  # type: ignore[union-attr]
            self._app.exit(exception=error)

    # -- drawing ---------------------------------------------------------------------------------

    def _layout(self) -> HSplit:
        model = self._model
        one = Dimension.exact(1)
        header = _Lines(lambda width, _: [chat_view.header_line(model, width)])
        hint = _Lines(lambda width, _: [chat_view.hint_line(model, width)])
        status = _Lines(lambda width, _: [chat_view.status_line(model, width)])
        listed = _Lines(lambda width, height: chat_view.list_lines(model, width, height))
        left = VSplit(
            [
                Window(listed, width=lambda: Dimension.exact(self._list_columns())),
                Window(width=one, char="│"),
            ]
        )
        return HSplit(
            [
                VSplit(
                    [
                        ConditionalContainer(left, Condition(lambda: self._list_columns() > 0)),
                        HSplit([Window(header, height=one), Window(_Lines(self._talk))]),
                    ]
                ),
                Window(hint, height=one),
                self._input,
                Window(status, height=one),
            ]
        )

    def _list_columns(self) -> int:
        return chat_view.list_columns(self._app.output.get_size().columns)

    def _talk(self, width: int, height: int) -> list[Line]:
        self._size = (width, height)
        drawn = chat_view.talk_lines(self._model, width, height)
        self._shown = (self._model.session, drawn.shown)
        return drawn.lines

    # -- keys ------------------------------------------------------------------------------------

    def _accepted(self, buffer: Buffer) -> bool:
        self.desk.entered(buffer.text)
        return False

    def _keys(self) -> KeyBindings:
        keys = KeyBindings()
        empty = Condition(lambda: not self._input.text)
        does: dict[tuple[str, ...], Callable[[], object]] = {
            ("up", "c-p"): lambda: self.desk.choose(-1),
            ("down", "c-n"): lambda: self.desk.choose(1),
            ("pageup",): lambda: self._scroll(up=True),
            ("pagedown",): lambda: self._scroll(up=False),
            ("c-r",): self.desk.recall,
            ("c-e",): self._edit,
            ("escape",): self._escape,
            ("enter",): self._input.buffer.validate_and_handle,
            ("c-c", "<sigint>"): lambda: self._leave(EXIT_INTERRUPTED),
        }
        for names, action in does.items():
            for name in names:
                keys.add(name, eager=name != "escape")(_handler(action))
        keys.add("c-d", filter=empty, eager=True)(_handler(lambda: self._leave(0)))
        return keys

    def _scroll(self, up: bool) -> None:
        self._model.notice = ""
        if chat_view.scroll(self._model, *self._size, up=up):
            self.desk.older()

    def _edit(self) -> None:
        text = self.desk.begin_edit()
        if text is not None:
            self._write(text)

    def _escape(self) -> None:
        model = self._model
        if model.editing is not None:
            model.editing = None
            self._write("")
        model.notice = ""
        model.show([])

    def _give_back(self, text: str) -> None:
        if not self._input.text:
            self._write(text)

    def _write(self, text: str) -> None:
        self._input.text = text
        self._input.buffer.cursor_position = len(text)


def _handler(action: Callable[[], object]) -> Callable[[KeyPressEvent], None]:
    def handle(_: KeyPressEvent) -> None:
        action()

    return handle
