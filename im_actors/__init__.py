"""im_actors: a messaging back end that loses nothing, doubles nothing and keeps one order."""

__version__ = "0.1.0"
