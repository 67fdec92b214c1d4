"""Generative priors: the type, class labels, DCGANs, files; and the packaged weights."""
