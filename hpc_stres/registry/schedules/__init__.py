"""Schedules, by name. Plateaus need none: they are written as a list of [steps, rate]."""
