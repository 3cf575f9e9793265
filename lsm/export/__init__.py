"""Models out of the house."""
