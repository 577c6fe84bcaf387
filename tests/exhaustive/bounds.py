"""What the explorer may do, and how often."""

from __future__ import annotations

from dataclasses import dataclass

RULES, COPIES, LOSS = "rules", "copies", "loss"


@dataclass(frozen=True, slots=True)
class Bounds:
    """What the explorer may do, and how often."""

    name: str
    about: str
    replicas: int = 3
    """Three members, and with four a spare."""
    epochs: int = 3
    """The highest epoch that is claimed."""
    records: int = 1
    """Messages of the one device; each is sent at any time, to any owner, as often as it likes."""
    crashes: int = 1
    """Crashes, each of a replica or of an owner."""
    store_faults: int = 0
    """Answers of the view store that are lost or late, and swaps that take effect late."""
    lazy: str = ""
    """Replicas whose applying, backfilling and deleting take time, and not only the journal's."""
    sources: int = 3
    """Other replicas that one asks for backfill."""
    loads: int = 0
    """Owners forget idle sessions, until they have loaded so many states; and are asked for heads.
    Then it matters which tables have applied what, and whom an owner asks."""
    copy_records: int = 256
    """OwnerSettings.copy_records_max: below it a spare has holes to fill."""
    flights: int = 1
    """ServingLimits.records_in_flight_max."""
    settled: int | None = 0
    """Begin with an owner that serves and has committed so many records; None: with nothing."""
    needless: bool = True
    """Owners take the slot anew while they serve."""
    rivals: bool = True
    """Both owners may run at once; False: one takes the slot only when the other one is down."""
    spare_links: bool = False
    """Links to spares come up at any time: they are told to delete what they have as soon as they
    may be. Otherwise it takes an answer of a member that tells something new."""
    late_acks: bool = False
    """Acks of former epochs stay on their way. Otherwise that they count for nothing is taken for
    granted, and they leave the network when their epoch is over."""
    judge: str = RULES
    """What counts as broken: every rule; only what is missing on a disk or told wrongly to a client
    (``COPIES``); only what is lost on all disks (``LOSS``)."""
    script: tuple[str, ...] = ()
    """Regular expressions: the first steps after the beginning, as they are told in a trace."""
    steps: int = 0
    """Only so many steps from the beginning; 0: all."""
