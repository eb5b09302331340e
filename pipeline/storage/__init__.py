"""Where things are kept: local folders, and object stores by URL."""
