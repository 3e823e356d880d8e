"""Gates for networks that have none: found places, identity at the start, and the way back."""
