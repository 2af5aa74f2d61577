"""Pages of HTML: one file each, no scripts, nothing to load."""
