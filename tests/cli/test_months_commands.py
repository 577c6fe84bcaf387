"""months list, move and drop."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from im_actors.server import clock
from tests.cli.conftest import ClusterThread, Result

Run = Callable[..., Result]
AHEAD_MS = 40 * 24 * 3600 * 1000


def listed(im: Run, data: Path) -> dict[str, Any]:
    code, out, _ = im("months", "list", "--json", "--data", data)
    assert code == 0
    return {name: {row["month"]: row for row in rows} for name, rows in json.loads(out).items()}


def test_months(
    im: Run, own_cluster: ClusterThread, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, month = own_cluster.data, f"{datetime.now(UTC):%Y-%m}"
    assert im("send", "team", "hello", "--as", "alice", "--data", data)[0] == 0
    rows = listed(im, data)
    assert len(rows) == 3
    assert sum(found[month]["events"] for found in rows.values()) >= 3
    code, out, err = im("months", "drop", month, "--yes", "--data", data)
    assert (code, out) == (1, "")
    assert f"{month} is not over" in err
    # What is written from here on is of a month that is over.
    monkeypatch.setattr("im_actors.server.months.now_ms", lambda: clock.now_ms() + AHEAD_MS)
    slow = tmp_path / "slow"
    slow.mkdir()
    code, out, _ = im("months", "move", month, slow, "--replica", "replica-2", "--data", data)
    assert (code, out) == (0, f"replica-2: {month} is moved\n")
    code, out, _ = im("months", "list", "--data", data)
    assert code == 0
    assert f"moved to {slow}/replica-2-" in out
    assert im("months", "move", month, "--data", data)[0] == 1
    code, out, _ = im("months", "drop", month, "--data", data)
    assert code == 0
    assert "nothing was dropped: --yes" in out
    assert not any(row[month]["dropped"] for row in listed(im, data).values())
    code, out, _ = im("months", "drop", month, "--yes", "--json", "--data", data)
    assert code == 0
    assert json.loads(out)["results"] == {f"replica-{n}": None for n in (1, 2, 3)}
    code, out, _ = im("history", "team", "--as", "bob", "--data", data)
    assert code == 0
    assert f"alice: (the content of {month} was dropped)" in out
    code, out, _ = im("verify", "--data", data)
    assert code == 0
    assert "the content was dropped" in out

    own_cluster.stop()
    rows = listed(im, data)
    assert all(found[month]["dropped"] for found in rows.values())
    assert rows["replica-2"][month]["moved"]
    back = ("months", "move", month, "--back", "--replica", "replica-2", "--data", data)
    assert im(*back)[0] == 0
    assert not listed(im, data)["replica-2"][month]["moved"]
    code, _, err = im("months", "drop", month, "--yes", "--data", data)
    assert code == 1
    assert "no cluster runs" in err
