"""The models, one file a family; each registers what it adds. torch is imported where a
network is built."""
