"""Weights: finding, reading, recognising, converting and writing our own files and those of other systems.

``locate`` finds out what a source is. ``own`` handles our files. ``read`` chooses the reader for those of other
systems, which gives plain tensors (``stored``). ``layouts`` maps their names to ours.
"""
