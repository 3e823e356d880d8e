"""Reads untrusted files without running anything in them, and without allocating more than they can back."""
