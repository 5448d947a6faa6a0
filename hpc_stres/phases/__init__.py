"""The kinds of phases, one file each: what a recipe may be made of."""
