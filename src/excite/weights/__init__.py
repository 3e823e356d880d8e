"""Weights: our own files, and those of other systems: found, read, recognised, converted, written back.

``locate`` says what a source is. ``own`` has our files; ``read`` chooses the reader of other systems', which gives
plain tensors (``stored``); ``layouts`` says whose names they have and which of ours they are.
"""
