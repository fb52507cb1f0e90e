"""Trained models as programs for Paddle Inference."""
