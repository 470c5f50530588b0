"""Built-in plugins: trainers."""
