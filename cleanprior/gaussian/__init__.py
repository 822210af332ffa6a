"""Gaussian priors that are fitted to measurements: a dense covariance, or one of low rank."""
