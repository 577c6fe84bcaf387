"""``im-actors bench``: the load generator.

One process commands and several generate. Each generator owns a part of the sessions with their
senders and their followers, so its ledger needs nobody else's:

    single, fanout, overload   what is measured, phase by phase
    processes    starts the generators, takes them through the phases, watches the servers' CPU
    generator    the process that makes load: connections, phases, the answers to the commander
    sending      one sending connection, closed loop or open loop
    following    one reading connection
    ledger       what was ACKed and what was read, and whether they agree

Times are microseconds of CLOCK_MONOTONIC, which all processes of a machine share.
"""
