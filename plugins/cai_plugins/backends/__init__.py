"""Built-in plugins: backends."""
