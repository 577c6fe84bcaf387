"""im_actors beside Redis and NATS JetStream in one run: ``python -m bench.compare``.

The load is made by the generator of ``im-actors bench``, with other senders for other systems.

    peers       what the senders have in common
    redis_load  Redis on the wire, and the generator for it
    nats_load   JetStream on the wire, and the generator for it
    servers     starts and ends the systems, one at a time
    figures     medians, the JSON, the table
    plot        the picture
"""
