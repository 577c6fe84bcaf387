"""``python -m tests.fuzz [--target codec|link|handshake|gateway|server] [--seconds N] [--seed S]``

The first three run under atheris, which is guided by coverage, where it is installed, and
otherwise (or with ``--own``) under the mutations of this package. ``gateway`` is a whole cluster in
this process, attacked over TCP; ``server`` is the SDK's client, lied to.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import random
import re
import subprocess
import sys
import tempfile
import time
import traceback
from importlib.util import find_spec
from pathlib import Path

from tests.fuzz import corpus, gateway, server
from tests.fuzz.mutate import mutated_bytes, mutated_stream
from tests.fuzz.targets import TARGETS

CORPORA = {
    "codec": corpus.PROTOCOL,
    "link": corpus.BETWEEN_ACTORS,
    "handshake": corpus.HANDSHAKE,
}


def input_of(target: str, seed: int) -> bytes:
    """The same input for the same seed, for ever."""
    rng = random.Random(seed)
    if rng.random() < 0.05:
        bomb = rng.choice(list(corpus.BOMBS.values()))
        return bomb if rng.random() < 0.5 else mutated_bytes(rng, bomb)
    return mutated_stream(rng, CORPORA[target])


def run_own(target: str, seconds: float, first: int) -> int:
    """Mutate until the time is over; print each seed that breaks a property. Their number."""
    end = time.monotonic() + seconds
    seed = first
    failed = 0
    while time.monotonic() < end and failed < 10:
        try:
            TARGETS[target](input_of(target, seed))
        except Exception:
            failed += 1
            print(f"\n{target}: seed {seed} failed\n{traceback.format_exc()}")
            print(
                f"replay: python -m tests.fuzz --own --target {target} --seed {seed} --seconds 0.01"
            )
        seed += 1
    print(f"{target}: {seed - first} executions in {seconds:.0f} s, {failed} failed")
    return failed


def run_atheris(target: str, seconds: int, seed: int) -> int:
    """libFuzzer ends its process, so it has one of its own."""
    with tempfile.TemporaryDirectory(prefix="im_actors-fuzz-") as directory:
        for number, frame in enumerate([*corpus.all_frames(), *corpus.BOMBS.values()]):
            (Path(directory) / f"frame-{number}").write_bytes(frame)
        options = [f"-max_total_time={seconds}", f"-seed={seed % 2**31}", "-max_len=8192"]
        options += ["-print_final_stats=1", "-verbosity=1", "-rss_limit_mb=1024", "-timeout=10"]
        options += [f"-artifact_prefix={directory}/found-"]
        done = subprocess.run(
            [sys.executable, "-m", "tests.fuzz.guided", target, *options, directory],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        found_inputs = [path.read_bytes() for path in Path(directory).glob("found-*")]
    executed = re.search(r"number_of_executed_units:\s*(\d+)", done.stdout)
    coverage = re.findall(r"cov: (\d+)", done.stdout)
    if done.returncode:
        print(done.stdout[-6000:])
    for data in found_inputs:
        print(f"replay: python -m tests.fuzz --target {target} --hex {data.hex()}")
    print(
        f"{target}: {executed[1] if executed else 'unknown'} executions in {seconds} s, coverage"
        f" {coverage[-1] if coverage else 'unknown'} edges, {int(bool(done.returncode))} failed"
    )
    return done.returncode


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.fuzz",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--target", choices=[*TARGETS, "gateway", "server"], action="append")
    parser.add_argument("--seconds", type=float, default=60, help="per target (default 60)")
    parser.add_argument("--seed", type=int, help="the first seed (default: a random one)")
    parser.add_argument("--own", action="store_true", help="without atheris")
    parser.add_argument("--hex", type=bytes.fromhex, help="run one input and nothing else")
    args = parser.parse_args()
    logging.disable(logging.WARNING)
    if args.hex is not None:
        for target in args.target or TARGETS:
            TARGETS[target](args.hex)
        return 0
    seed = args.seed if args.seed is not None else random.SystemRandom().randrange(10**9)
    print(f"first seed {seed}", flush=True)
    failed = 0
    for target in args.target or [*TARGETS, "gateway", "server"]:
        if target == "gateway":
            failed += asyncio.run(gateway.fuzz(args.seconds, seed))
        elif target == "server":
            failed += asyncio.run(server.fuzz(args.seconds, seed))
        elif args.own or find_spec("atheris") is None:
            failed += run_own(target, args.seconds, seed)
        else:
            failed += run_atheris(target, int(args.seconds), seed)
    print(f"{failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
