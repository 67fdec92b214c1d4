"""Measures this library beside its peers; see README.md."""
