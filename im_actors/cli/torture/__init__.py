"""The fault kit: a real cluster of several nodes on this machine, broken on purpose and judged.

schedule   which fault comes when, from a seed
nodes      the Ray of several nodes whose parts can be killed
relay      every connection between actors, and of clients, that can be cut, delayed, swallowed
wrecker    carries the faults out and heals them again
writer     a process of writing clients, which can be killed
traffic    the writers, readers and resenders, and what they saw
recovery   how long until it went on
judge      what the checkers say of all that
run        from the start to the report
"""
