"""Shared by all tests."""

import ppvilg  # noqa: F401  sets the environment, so it has to come before any test imports paddle
