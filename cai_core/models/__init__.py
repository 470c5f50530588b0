"""Models from the package index: catalog and conversion."""
