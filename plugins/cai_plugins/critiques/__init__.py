"""Built-in plugins: critiques."""
