"""Measurements: attacks against their floor, against other libraries in speed and strength, and their memory."""
