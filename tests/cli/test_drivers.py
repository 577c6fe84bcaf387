"""The driver scripts that users start from: they work as they are."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from tests.cli.conftest import ClusterThread

ROOT = Path(__file__).parents[2]
DRIVERS = ROOT / "cluster" / "drivers"
LINES_MAX = 40


def drive(name: str, *argv: object, text: str = "") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(DRIVERS / name), *map(str, argv)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        command, input=text, capture_output=True, text=True, timeout=60, env=environment
    )


def test_send_and_receive(shared_cluster: ClusterThread, tmp_path: Path) -> None:
    url = shared_cluster.cluster.url
    texts = [f"line {n} 你好 👩‍👩‍👧‍👦" for n in range(300)]
    sent = drive("send.py", url, "alice", "drivers", tmp_path / "a.db", text="\n".join(texts))
    assert (sent.returncode, sent.stderr) == (0, "")
    assert sent.stdout.splitlines() == [f"drivers {n}" for n in range(1, 301)]
    again = drive("send.py", url, "alice", "drivers", tmp_path / "a.db", text="one more")
    assert again.stdout == "drivers 301\n"
    received = drive("receive.py", url, "bob", "drivers", 301)
    assert (received.returncode, received.stderr) == (0, "")
    events = [json.loads(line) for line in received.stdout.splitlines()]
    assert [event["seq"] for event in events] == list(range(1, 302))
    assert [event["text"] for event in events] == [*texts, "one more"]


def test_usage() -> None:
    for name in ("send.py", "receive.py"):
        done = drive(name)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.startswith(f"usage: {name}")


def test_they_are_short() -> None:
    for path in DRIVERS.glob("*.py"):
        assert len(path.read_text().splitlines()) < LINES_MAX
