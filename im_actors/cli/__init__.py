"""The ``im-actors`` command. Modules import what is heavy (Ray, rich) only where they use it."""
