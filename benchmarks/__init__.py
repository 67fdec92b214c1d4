"""How fast this library is beside its peers; see README.md."""
