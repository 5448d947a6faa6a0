"""From videos to the store: listings, imports, decoding, packing, repair."""
