"""im_actors beside Redis and NATS JetStream in one run: ``python -m bench.compare``.

loop       the closed loop that loads all of them, and what it counts
clients    one connection of each system on that loop
generate   a process that runs the loop once
servers    starts and ends the systems, one at a time
figures    medians, the JSON, the table
plot       the picture
"""
