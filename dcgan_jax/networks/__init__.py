"""The networks (generator, discriminator, encoder) and their layers."""
