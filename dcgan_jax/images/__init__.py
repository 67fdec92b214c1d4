"""Images as arrays: number formats, checks, metrics, figures."""
