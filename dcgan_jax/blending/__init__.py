"""Blending a completion into a hole."""
