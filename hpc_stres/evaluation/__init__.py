"""Testing: protocols, tables, fusion with other scores, the report."""
