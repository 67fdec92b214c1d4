"""Inpainting by latent search."""
