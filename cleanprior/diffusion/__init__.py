"""Denoisers, samplers of p(x) and samplers of p(x|y)."""
