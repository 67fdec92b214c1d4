"""What lies on disk or in a bucket."""
