"""Built-in plugins: rewards."""
