"""The devices of a user, as his mailbox keeps them: "d/" + device is one, "d" the names of all."""

from __future__ import annotations

from typing import Any, NamedTuple

from im_actors.core.facts import pack_request, pack_state
from im_actors.core.lookup import Lookup
from im_actors.core.rows import pack_row, unpack_row
from im_actors.core.rule_settings import RuleSettings
from im_actors.core.rules import Accept, Request
from im_actors.errors import Forbidden, NotFound

DEVICES_KEY = "d"


class Device(NamedTuple):
    """One device. Times are milliseconds since the Unix epoch."""

    about: str
    """What it says of itself."""
    since_ms: int
    kicked_ms: int = 0
    """When it was kicked, 0: it was not. It is let in again only by another device of the user."""

    def to_bytes(self) -> bytes:
        return pack_row(self)

    @classmethod
    def from_bytes(cls, data: bytes) -> Device:
        return cls(*unpack_row("a device", data, len(cls._fields)))


def device_key(device: str) -> str:
    """``device`` without the user."""
    return f"{DEVICES_KEY}/{device}"


def read_devices(value: bytes | None) -> list[str]:
    """The names in the fact "d": of all devices that are not kicked, the oldest first."""
    return list(unpack_row("the devices", value, 1)[0]) if value is not None else []


def device_request(device: str, about: str) -> bytes:
    """The body of a SEND to the own mailbox: list a device, or let in one that was kicked."""
    return pack_request("device", device, about)


def kick_request(device: str) -> bytes:
    """The body of a SEND to the own mailbox: ``device`` is to be let in no more."""
    return pack_request("kick", device)


def decide_device(
    lookup: Lookup, request: Request, settings: RuleSettings, what: str, args: list[Any]
) -> Accept:
    """List a device or kick it; raises why not."""
    asking, name = request.device.partition("/")[2], args[0]
    lookup.want(DEVICES_KEY, device_key(name), device_key(asking))
    if (row := _device(lookup, asking)) is not None and row.kicked_ms:
        raise Forbidden(f"{request.device} was kicked: let it in again from another device")
    names, row = read_devices(lookup.value(DEVICES_KEY)), _device(lookup, name)
    if what == "device":
        names, row = _listed(names, row, request, settings, args)
    elif row is None or row.kicked_ms:
        raise NotFound(f"{request.user} has no device {name!r}: kick one that is listed")
    else:
        names = [other for other in names if other != name]
        row = row._replace(kicked_ms=max(1, request.now_ms))
    rows = [(device_key(name), 0, row.to_bytes()), (DEVICES_KEY, 0, pack_row((names,)))]
    return Accept(request.kind, pack_state(what, args, rows))


def _device(lookup: Lookup, name: str) -> Device | None:
    data = lookup.value(device_key(name))
    return Device.from_bytes(data) if data is not None else None


def _listed(
    names: list[str], row: Device | None, request: Request, settings: RuleSettings, args: list[Any]
) -> tuple[list[str], Device]:
    name, about = args
    if row is not None and not row.kicked_ms:
        return names, row._replace(about=about)
    if len(names) >= settings.devices_max:
        raise Forbidden(
            f"{request.user} has {len(names)} devices, the limit is {settings.devices_max}: "
            "kick one first"
        )
    return [*names, name], Device(about, request.now_ms)
