"""Stands in for Paddle Serving's client package, which has no build for this Python; the server only imports the name."""


class Client:
    """Never used by a pipeline service."""
