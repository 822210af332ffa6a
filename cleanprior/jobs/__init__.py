"""Cells as jobs: each stage of a cell in a process of its own, several cells side by side."""
