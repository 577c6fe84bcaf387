"""The wire protocol: frames and messages, shared by clients and by the links between actors.

``PROTOCOL.md`` beside this file describes it completely. Nothing here does I/O.
"""
