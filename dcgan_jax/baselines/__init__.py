"""What a latent search is compared with: one method a file, each from images and hole to completed images."""
