"""Kernels broken on purpose: every one must be killed by a named property."""
