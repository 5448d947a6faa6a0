"""The clip store: its format, writing, reading, checking, and where it lies."""
