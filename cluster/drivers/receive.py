"""Print a conversation from its first message on, one JSON object a line, as it goes on.

    python cluster/drivers/receive.py im://127.0.0.1:7070 bob team [COUNT]

Ends after COUNT messages, or with Ctrl-C. IM_ACTORS_TOKEN holds the token where one is asked for,
IM_ACTORS_TLS_CA the file of an authority of its own for ims://.
"""

import json
import os
import sys
from itertools import islice

from im_actors.client import ClientConfig
from im_actors.client.sync import Client


def main() -> int:
    if len(sys.argv) not in (4, 5):
        print("usage: receive.py URL USER SESSION [COUNT]", file=sys.stderr)
        return 2
    url, user, session, *count = sys.argv[1:]
    token = os.environ.get("IM_ACTORS_TOKEN")
    ca = os.environ.get("IM_ACTORS_TLS_CA", "") if url.startswith("ims:") else ""
    with (
        Client(url, user, "driver", token=token, config=ClientConfig(tls_ca=ca)) as im,
        im.follow(session, after=0) as events,
    ):
        for event in islice(events, int(count[0]) if count else None):
            fields = {"seq": event.seq, "sender": event.sender, "text": event.text}
            print(json.dumps(fields, ensure_ascii=False), flush=True)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
