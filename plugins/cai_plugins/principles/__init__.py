"""Built-in plugins: principles."""
