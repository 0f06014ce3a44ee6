"""TurboSparse: an exact, continuously batching server for activation-sparse language models.

`models/` is what is computed, `engine/` is when it is computed, `server/` is who asks.
"""

__version__ = "0.1.0"
