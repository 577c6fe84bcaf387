"""The exhaustive check of a small cluster (see ``tests/exhaustive/__main__.py``)."""
