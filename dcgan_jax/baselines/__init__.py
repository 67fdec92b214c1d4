"""Other methods of image completion, one file for each."""
