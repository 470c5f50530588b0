"""Built-in plugins: prompts."""
