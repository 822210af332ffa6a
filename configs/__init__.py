"""Hydra configuration groups of cleanprior."""
