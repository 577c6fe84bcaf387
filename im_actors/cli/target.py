"""Which cluster a command means: its data directory, its addresses, its tokens, its admin door."""

from __future__ import annotations

import argparse
import getpass
import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from im_actors.errors import NotReachable, SetupError
from im_actors.server.cluster_file import RunFile, default_data, read_cluster, read_run

if TYPE_CHECKING:
    from im_actors.client.config import ClientConfig
    from im_actors.server.admin import AdminClient

URL_DEFAULT = "im://127.0.0.1:7070"
FILE_NAME_MAX = 120


def add_data_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--data",
        metavar="DIR",
        type=Path,
        help="the cluster's data directory (default: $IM_ACTORS_DATA, else im_actors below the"
        " user's data home)",
    )


def add_client_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--url",
        help="im://HOST:PORT[,HOST:PORT...], ims:// for TLS (default: the cluster that runs from"
        f" --data, else {URL_DEFAULT})",
    )
    parser.add_argument(
        "--token",
        default=os.environ.get("IM_ACTORS_TOKEN") or None,
        help="the user's token (default: $IM_ACTORS_TOKEN)",
    )
    parser.add_argument(
        "--tls-ca",
        metavar="FILE",
        help="for ims://: the authorities whose signature is believed, a PEM file (default:"
        " $IM_ACTORS_TLS_CA, else those that the cluster from --data was started with, else the"
        " system's)",
    )
    parser.add_argument(
        "--tls-server-name",
        metavar="NAME",
        help="for ims://: the name in the server's certificate, when it is not the host of the URL",
    )
    add_data_option(parser)


def data_of(args: argparse.Namespace) -> Path:
    data: Path | None = args.data
    return data if data is not None else default_data()


def url_of(args: argparse.Namespace) -> str:
    """The address to connect to; SetupError when it is none."""
    from im_actors.client.config import parse_url

    if args.url is not None:
        parse_url(args.url)
        return str(args.url)
    run = read_run(data_of(args))
    return run.url if run is not None else URL_DEFAULT


def client_config(args: argparse.Namespace, **fields: Any) -> ClientConfig:
    """The settings of a command's client: how it knows the server, and ``fields``."""
    from im_actors.client.config import ClientConfig, parse_url

    ca, name = args.tls_ca or "", args.tls_server_name or ""
    if not ca and parse_url(url_of(args)).tls:
        ca = os.environ.get("IM_ACTORS_TLS_CA", "")
        run = read_run(data_of(args)) if args.url is None else None
        if run is not None:
            ca, name = ca or run.tls.authorities, name or run.tls_server_name
    return ClientConfig(tls_ca=ca, tls_server_name=name, **fields)


def store_of(args: argparse.Namespace, user: str, device: str) -> Path:
    """The file that keeps what this user sends from this computer. Clusters that are named by
    --url have files of their own: message numbers and positions mean nothing to another one."""
    folder = data_of(args) / "clients"
    if args.url is not None:
        folder = default_data() / "clients" / _file_name(args.url)
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise SetupError(
            f"{folder} cannot be made: {error.strerror}; give another --data"
        ) from None
    return folder / f"{_file_name(user)}.{device}.db"


def _file_name(text: str) -> str:
    name = quote(text, safe=" @+,")
    if len(name) <= FILE_NAME_MAX:
        return name
    return name[:80].rpartition("%")[0] + hashlib.sha256(text.encode()).hexdigest()[:24]


def login_name() -> str:
    """The user's name on this computer, as a default."""
    try:
        return getpass.getuser()
    except (OSError, KeyError):
        return "somebody"


# -- the operator's side ---------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Running:
    """A cluster that runs, or ran until it was killed."""

    data: Path
    run: RunFile
    secret: bytes

    def admin(self, timeout_s: float = 10.0) -> AdminClient:
        from im_actors.server.admin import admin_of

        return admin_of(self.run, self.secret, timeout_s)

    async def call(self, method: str, *arguments: Any, timeout_s: float = 10.0) -> Any:
        """One admin call on a connection of its own."""
        async with self.admin(timeout_s) as admin:
            return await admin.call(method, *arguments)

    async def gateways(self) -> list[str]:
        """host:port of the gateways, which may share one; a cluster has at least one."""
        found = {f"{g['address']}:{g['port']}" for g in await self.call("gateways")}
        if not found:
            raise NotReachable("no gateway runs at the moment; im-actors status says why")
        return sorted(found)


def running_cluster(data: Path) -> Running:
    """The cluster that runs from ``data``; SetupError when none does."""
    cluster, run = read_cluster(data), read_run(data)
    if cluster is None or run is None:
        raise SetupError(
            f"no cluster runs from {data}: im-actors up starts one, --data names another directory"
        )
    return Running(data, run, cluster.secret_bytes)


# -- tokens ----------------------------------------------------------------------------------------


def add_secret_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--token-secret-file",
        metavar="FILE",
        type=Path,
        default=os.environ.get("IM_ACTORS_TOKEN_SECRET_FILE") or None,
        help="the file with the secret that tokens are signed with (default:"
        " $IM_ACTORS_TOKEN_SECRET_FILE, or the secret itself in $IM_ACTORS_TOKEN_SECRET)",
    )


def secret_of(args: argparse.Namespace) -> str | None:
    """The secret of a command with ``add_secret_option``, from a file or the environment, without
    the white space around it; None: none was given."""
    path: Path | None = args.token_secret_file
    if path is None:
        return os.environ.get("IM_ACTORS_TOKEN_SECRET", "").strip() or None
    try:
        secret = Path(path).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise SetupError(f"the token secret {path} cannot be read: {error}") from None
    if not secret:
        raise SetupError(f"the token secret {path} is empty")
    return secret


def token_maker(args: argparse.Namespace) -> Callable[[str], str | None]:
    """A token for each user: made from the secret when it is known, else the one of --token."""
    secret = secret_of(args)
    if secret is None:
        return lambda user: args.token

    def make(user: str) -> str:
        from im_actors.gateway.tokens import make_token

        return make_token(secret, user)

    return make
