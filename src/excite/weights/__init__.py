"""Weights of other systems: read, recognised, converted, written back.

``stored`` reads a file of any known format into plain tensors; ``layouts`` says whose names they have and which of ours
they are.
"""
