"""What a data set is: its videos, classes and splits, from lists, tables and folders."""
