"""Trunks other than the ResNet: frames in, a map of features out, under published parameter names."""
