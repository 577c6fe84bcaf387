"""A whole cluster of the real machines in one thread with virtual time (design 12.2).

    clock, network        time, processes that crash and pause, messages and connections
    disks, replicas       ``core.replica`` and the apply queue on disks that keep what was synced
    shards, store         ``core.owner`` for each slot; the view store
    registers             sessions with rules, and what their facts must be
    gateways              the real router, followers, pulls and client connections
    clients, device_store the real outbox, inbox and dialer in apps that die
    controllers           opinions about who runs
    faults, troubles      what may happen, and what makes it happen
    world                 one run: safety under faults, then healing and liveness
    runs, shrink          from a plan to its outcome; a smaller one that fails alike

It is judged by ``im_actors.proof``, which shares no code with what runs here, and by the invariants
of ``core.invariants``. Everything random comes from the seed, everything iterated over has an order
of its own: a seed is one run, in every process.
"""
