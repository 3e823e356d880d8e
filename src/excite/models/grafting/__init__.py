"""Grafting gates onto networks that have none: finding places, starting as the identity, and removing gates again."""
