"""Plots and grids of pictures, in one look. No torch but for the pictures of cells."""
