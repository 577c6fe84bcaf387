"""Where the time goes: ``python -m bench.profile``.

threads    CPU of each thread of the cluster, as /proc tells it
sampling   where the actors' Python code is, as py-spy sees it
stages     samples and CPU become microseconds per message and stage
ports      which actor has which port
capture    the packets of the loopback device, with the kernel's timestamps
hops       packets become the hops of an ACK
report     the tables
"""
