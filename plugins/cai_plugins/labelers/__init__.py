"""Built-in plugins: labelers."""
