"""The shells of the server, without Ray: replica, shard and controller nodes, view stores."""
