"""Send lines of standard input to a conversation; print each one's place as it is confirmed.

    seq 1000 | python cluster/drivers/send.py im://127.0.0.1:7070 alice team alice.db

Kill it at any moment and start it again with the same store: what it had read is sent, once.
IM_ACTORS_TOKEN holds the token where the cluster asks for one, IM_ACTORS_TLS_CA the file of an
authority of its own for ims://.
"""

import os
import sys

from im_actors.client import ClientConfig
from im_actors.client.sync import Client


def main() -> int:
    if len(sys.argv) not in (4, 5):
        print("usage: send.py URL USER SESSION [STORE]", file=sys.stderr)
        return 2
    url, user, session, *store = sys.argv[1:]
    token = os.environ.get("IM_ACTORS_TOKEN")
    ca = os.environ.get("IM_ACTORS_TLS_CA", "") if url.startswith("ims:") else ""
    path, config = store[0] if store else None, ClientConfig(tls_ca=ca)
    with Client(url, user, "driver", path, token, config=config) as im:
        waiting = im.outbox()  # of an earlier run
        for line in sys.stdin:
            waiting.append(im.send(session, line.rstrip("\n")))
        for sent in waiting:
            ack = sent.acked(timeout=60)
            print(f"{ack.session} {ack.seq}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
