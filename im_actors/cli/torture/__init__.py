"""The fault kit: a real cluster of several nodes on this machine, broken on purpose and judged.

run          from the start to the report
schedule     which fault comes when, from a seed
cluster      what is broken: its actors, and how it is started, asked and stopped
nodes        the Ray of several nodes whose parts can be killed
relay        every connection between actors, and of clients: cut, delayed, held, swallowed
wrecker      carries the faults out and heals them again
writer       a process of writing clients, which can be killed; ``writers`` is its parent's side
readers      who follows, who pulls, and who sends old messages again, by ``wire_client``
book         what was sent and ACKed, and when
recovery     how long until it went on
judge        reads everything back and asks the checkers of ``im_actors.proof``
"""
