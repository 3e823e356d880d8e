"""Trained networks and their images, opened once: the basis of evaluation, prediction, reports and export."""
