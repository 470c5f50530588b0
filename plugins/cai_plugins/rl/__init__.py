"""Built-in plugins: rl."""
