"""What is kept on disk: a replica's directory, its journal and its history, and a client's store.

Every class here but the client store is synchronous and is used from one thread at a time.
"""
