"""An example of a package with components for cai-core."""
