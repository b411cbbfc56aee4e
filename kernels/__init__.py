"""Fused Triton kernels, one operation per file. Installed as `stabcheck.kernels`."""
