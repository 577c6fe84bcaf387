"""The asyncio shell around ``wire``: framed connections, listeners, links that reconnect."""
