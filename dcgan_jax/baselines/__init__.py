"""Other methods that complete images, one file each."""
