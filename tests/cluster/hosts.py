"""Several hosts on one machine: namespaces with an address, processes, files and an sshd each.

Each host is a network namespace on a bridge and, inside of it, a PID and a mount namespace: ``ps``
and ``kill`` on a host see its own processes only, and its disk is a directory that is mounted at
the same place on all of them. Takes root, iproute2 and OpenSSH.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

NETWORK = "10.213"
"""The first two bytes of all addresses; the third tells apart what runs at the same time."""
SSH_S = 10.0
NEEDED = ("ip", "unshare", "ssh", "ssh-keygen", "tc")
SSHD = "/usr/sbin/sshd"
TUN = "/dev/net/tun"
NO_CABLE = "" if Path(TUN).exists() else f"a long cable takes {TUN}"
RAY_TEMP = "/tmp/ray"
"""Where Ray keeps its sockets and logs: each host has its own, gone after a power cut."""


def missing() -> str:
    """Why there can be no hosts here; empty when there can."""
    if os.geteuid() != 0:
        return "several hosts on one machine take root: run this as root"
    gone = [name for name in NEEDED if shutil.which(name) is None]
    if not Path(SSHD).exists():
        gone.append("sshd")
    return f"several hosts take {', '.join(gone)} (iproute2, openssh-server)" if gone else ""


def _run(*words: object) -> None:
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(map(str, words))}: {done.stderr.strip()}")


class Host:
    """One of them. ``disk`` is what the host sees at ``Hosts.mount``."""

    def __init__(self, hosts: Hosts, number: int) -> None:
        self.hosts = hosts
        self.number = number
        self.name = f"{hosts.tag}h{number}"
        self.address = f"{hosts.network}.{10 + number}"
        self.folder = hosts.folder / f"host-{number}"
        self.disk = self.folder / "disk"
        self._process: subprocess.Popen[bytes] | None = None
        self._cable: subprocess.Popen[bytes] | None = None

    # -- power -------------------------------------------------------------------------------------

    def start(self) -> None:
        """Switch it on; returns when its sshd answers."""
        self.disk.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(self.folder / "ray", ignore_errors=True)
        (self.folder / "ray").mkdir()
        self._plug()
        script = (
            f"mount --bind {self.disk} {self.hosts.mount}"
            f" && mount --bind {self.folder}/ray {RAY_TEMP}"
            f" && mount --bind {self.hosts.passwd} /etc/passwd"
            f" && hostname {self.name} && exec {SSHD} -D -e -f {self.hosts.sshd_config}"
        )
        log = (self.folder / "sshd.log").open("ab")
        self._process = subprocess.Popen(
            ["ip", "netns", "exec", self.name, "unshare", "--mount", "--uts", "--pid", "--fork",
             "--kill-child", "--mount-proc", "sh", "-c", script],
            stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip
        log.close()
        deadline = time.monotonic() + SSH_S
        while True:
            with contextlib.suppress(OSError), socket.create_connection((self.address, 22), 1):
                return
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{self.name}: {(self.folder / 'sshd.log').read_text()}")
            time.sleep(0.02)

    def kill(self) -> None:
        """Pull the plug: every process of the host is gone at once."""
        if self._process is not None:
            # The first process of a PID namespace takes all others with it, and ``unshare``, which
            # waits for it, has then seen them all go.
            os.kill(self.first_process, signal.SIGKILL)
            self._process.wait()
            self._process = None
        self._take_out_cable()
        subprocess.run(["ip", "netns", "del", self.name], capture_output=True)
        subprocess.run(["ip", "link", "del", self._port], capture_output=True)

    @property
    def first_process(self) -> int:
        """The pid, outside, of the sshd of a host that is switched on."""
        assert self._process is not None
        pid = self._process.pid
        return int(Path(f"/proc/{pid}/task/{pid}/children").read_text())

    def lose_disk(self) -> None:
        """What it had on its disk is gone; switch it off before."""
        shutil.rmtree(self.disk, ignore_errors=True)

    # -- the network -------------------------------------------------------------------------------

    def cut(self) -> None:
        """Nothing gets in or out."""
        _run("ip", "link", "set", self._port, "down")

    def heal(self) -> None:
        """Undo ``cut``, ``cut_one_way``, ``slow`` and ``lengthen``."""
        _run("ip", "link", "set", self._port, "up")
        if self._cable is not None:
            self._take_out_cable()
            _run("ip", "link", "set", self._port, "master", self.hosts.bridge)
        subprocess.run(["tc", "qdisc", "del", "dev", self._port, "root"], capture_output=True)
        self._inside("tc", "qdisc", "del", "dev", "eth0", "root", check=False)

    def cut_one_way(self, outgoing: bool) -> None:
        """It still hears, and is not heard (``outgoing``), or the other way round."""
        # A token bucket drops what is larger than the bucket, and nothing is smaller than this one.
        self._shape(outgoing, "rate", "8bit", "burst", "10b", "latency", "1ms")

    def slow(self, kbit_per_s: int) -> None:
        """It sends so much at most; what is more waits, and is dropped after 400 ms."""
        self._shape(True, "rate", f"{kbit_per_s}kbit", "burst", "4kb", "latency", "400ms")

    def lengthen(self, delay_ms: float, jitter_ms: float, loss: float, seed: int) -> None:
        """All that it sends and gets is late by ``delay_ms`` and up to ``jitter_ms`` more, each
        way; of all frames ``loss`` (0 to 1) never come."""
        ends = (f"{self.name}n", f"{self.name}f")
        self._cable = subprocess.Popen(
            [sys.executable, Path(__file__).with_name("slow_link.py"), *ends,
             "--delay-ms", str(delay_ms), "--jitter-ms", str(jitter_ms), "--loss", str(loss),
             "--seed", str(seed)],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, start_new_session=True,
        )  # fmt: skip
        assert self._cable.stdout is not None
        assert self._cable.stdout.readline() == b"ready\n"
        # host == a bridge of its own == near end … far end == everybody's bridge
        _run("ip", "link", "add", self._own_bridge, "up", "type", "bridge")
        for device, bridge in ((ends[0], self._own_bridge), (ends[1], self.hosts.bridge),
                               (self._port, self._own_bridge)):  # fmt: skip
            _run("ip", "link", "set", device, "master", bridge, "up")

    def _take_out_cable(self) -> None:
        if self._cable is not None:
            self._cable.kill()
            self._cable.communicate()
            self._cable = None
        subprocess.run(["ip", "link", "del", self._own_bridge], capture_output=True)

    def _shape(self, outgoing: bool, *bucket: str) -> None:
        if outgoing:
            self._inside("tc", "qdisc", "replace", "dev", "eth0", "root", "tbf", *bucket)
        else:
            _run("tc", "qdisc", "replace", "dev", self._port, "root", "tbf", *bucket)

    # -- commands ----------------------------------------------------------------------------------

    def ssh(self, command: str, timeout_s: float = 60.0) -> str:
        """What a command printed there; RuntimeError: it failed."""
        done = subprocess.run(
            ["ssh", *self.hosts.ssh_options, f"root@{self.address}", command],
            capture_output=True, text=True, timeout=timeout_s, stdin=subprocess.DEVNULL,
        )  # fmt: skip
        if done.returncode:
            raise RuntimeError(f"{self.name}: {command}: {done.stderr.strip()}\n{done.stdout}")
        return done.stdout

    def listens(self, port: int) -> bool:
        """Whether a connection from outside comes up."""
        try:
            with socket.create_connection((self.address, port), 1):
                return True
        except OSError:
            return False

    # -- inside ------------------------------------------------------------------------------------

    @property
    def _port(self) -> str:
        """The bridge's side of its cable."""
        return f"{self.name}p"

    @property
    def _own_bridge(self) -> str:
        """Between it and a cable that was lengthened."""
        return f"{self.name}b"

    def _plug(self) -> None:
        subprocess.run(["ip", "netns", "del", self.name], capture_output=True)
        _run("ip", "netns", "add", self.name)
        # The same card as before, or others would look for the old one for a while.
        card = f"02:00:{':'.join(f'{int(byte):02x}' for byte in self.address.split('.'))}"
        _run("ip", "link", "add", self._port, "type", "veth",
             "peer", "name", "eth0", "address", card, "netns", self.name)  # fmt: skip
        _run("ip", "link", "set", self._port, "master", self.hosts.bridge, "up")
        self._inside("ip", "addr", "add", f"{self.address}/24", "dev", "eth0")
        self._inside("ip", "link", "set", "eth0", "up")
        self._inside("ip", "link", "set", "lo", "up")

    def _inside(self, *words: str, check: bool = True) -> None:
        command = ["ip", "netns", "exec", self.name, *words]
        if check:
            _run(*command)
        else:
            subprocess.run(command, capture_output=True)


class Hosts:
    """A network of hosts. Use as a context manager: at its end nothing of it is left."""

    def __init__(self, folder: Path, count: int) -> None:
        self.tag = f"im{secrets.token_hex(2)}"
        self.folder = folder
        self.bridge = f"{self.tag}br"
        self.network = f"{NETWORK}.{_free_network()}"
        self.gateway = f"{self.network}.1"
        """This machine's own address among them."""
        self.mount = folder / "srv"
        self.key = folder / "key"
        self.sshd_config = folder / "sshd_config"
        self.passwd = folder / "passwd"
        self.all = [Host(self, number) for number in range(1, count + 1)]

    @property
    def ssh_options(self) -> Sequence[str]:
        options = ("StrictHostKeyChecking=no", "UserKnownHostsFile=/dev/null", "LogLevel=ERROR",
                   "ConnectTimeout=5", "BatchMode=yes")  # fmt: skip
        return ["-i", str(self.key), *(word for option in options for word in ("-o", option))]

    def __enter__(self) -> Hosts:
        try:
            self._make()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for host in self.all:
            host.kill()
        subprocess.run(["ip", "link", "del", self.bridge], capture_output=True)

    def _make(self) -> None:
        self.mount.mkdir(parents=True, exist_ok=True)
        for name in ("key", "host_key"):
            _run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", self.folder / name)
        # What a program keeps at home is on the host's own disk, and not the same on all of them.
        users = Path("/etc/passwd").read_text().splitlines()
        home = [f"root:x:0:0:root:{self.mount}:/bin/bash"]
        others = [user for user in users if not user.startswith("root:")]
        self.passwd.write_text("\n".join([*home, *others]) + "\n")
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
        Path(RAY_TEMP).mkdir(exist_ok=True)
        self.sshd_config.write_text(
            f"Port 22\nHostKey {self.folder}/host_key\nAuthorizedKeysFile {self.folder}/key.pub\n"
            f"PidFile none\nUsePAM no\nStrictModes no\nPermitRootLogin yes\nUseDNS no\n"
            f"PasswordAuthentication no\nMaxStartups 100\nSubsystem sftp internal-sftp\n"
        )
        _run("ip", "link", "add", self.bridge, "type", "bridge")
        _run("ip", "addr", "add", f"{self.gateway}/24", "dev", self.bridge)
        _run("ip", "link", "set", self.bridge, "up")
        for host in self.all:
            host.start()


def _free_network() -> int:
    """A third byte that no interface here has."""
    used = subprocess.run(["ip", "-o", "addr"], capture_output=True, text=True).stdout
    free = (n for n in range(1, 255) if f" {NETWORK}.{n}." not in used)
    return next(free)


@contextlib.contextmanager
def hosts(folder: Path, count: int) -> Iterator[Hosts]:
    """``count`` hosts that are switched on."""
    with Hosts(folder, count) as made:
        yield made
