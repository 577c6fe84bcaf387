"""The machine that a figure was measured on."""

from im_actors.cli.bench.machine import describe, fsync_us

__all__ = ["describe", "fsync_us"]
