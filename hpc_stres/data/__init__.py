"""From videos to clips on the device: lists, decoding, flow, the store, requests and the feed."""
