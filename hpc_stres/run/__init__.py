"""The run folder: its file names, atomic and sealed files, owners, products,
progress, provenance."""
