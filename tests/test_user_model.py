"""A short random day, and the beginnings of the chat files, against the model.

Long ones: ``python -m tests.usermodel --help``.
"""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.usermodel.replay import ReplayPlan, data_file, replay
from tests.usermodel.runs import Outcome, Plan, run

FAULTS = ("kill", "warm", "forget")
FILES = ("group-irc.jsonl.gz", "direct-zh-crosswoz.jsonl.gz")


def check(outcome: Outcome, command: str) -> None:
    story = "\n".join(outcome.story)
    assert not outcome.failure, f"{story}\n{outcome.failure}\n{command}"


async def test_everybody_sees_what_he_should(tmp_path: Path) -> None:
    plan = Plan(random.randrange(10**6), 50, 25, 3, 2, FAULTS)
    print(f"seed {plan.seed}: {plan.command()}")
    outcome = await run(plan, tmp_path)
    check(outcome, plan.command())
    assert outcome.quiet_points == 2
    assert outcome.events > 15


async def test_chat_files_are_read_by_all_as_they_were_written(tmp_path: Path) -> None:
    for file in FILES:
        if not data_file(file).exists():
            pytest.skip(f"{data_file(file)} is not here: chat files are no part of the checkout")
    plan = ReplayPlan(1, FILES, 20, 20)
    outcome = await replay(plan, tmp_path)
    check(outcome, plan.command())
    assert outcome.steps == 20 * len(FILES)
