"""Built-in plugins: _torch."""
