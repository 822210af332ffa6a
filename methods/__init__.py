"""Methods, one module each. Each is found by its entry point, as a stranger's method is."""
