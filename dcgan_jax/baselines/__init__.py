"""Other ways to complete images: one method a file."""
