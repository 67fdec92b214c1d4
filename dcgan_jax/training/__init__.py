"""Training of the networks: what is trained, the loop, and what it writes."""
