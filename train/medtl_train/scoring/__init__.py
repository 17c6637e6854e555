"""Figures of what networks answered, with intervals and tests; numbers only, no torch."""
