"""The kinds of data sets, one file or more; each registers how its lists are read."""
