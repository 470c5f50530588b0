"""Built-in plugins: evaluators."""
