"""Files that others made: read without running anything in them, and without taking memory on their word alone."""
