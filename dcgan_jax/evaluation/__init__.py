"""Comparison of searches and baselines on held-out images."""
