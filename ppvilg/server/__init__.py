"""Serving: one model that many clients share, over HTTP and gRPC."""
