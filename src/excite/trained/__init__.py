"""A trained network with its images, opened once: everything that studies, ships or uses one begins here."""
