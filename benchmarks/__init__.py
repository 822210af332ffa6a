"""The harness: cells, runner, tables, pictures. It knows methods by name only."""
