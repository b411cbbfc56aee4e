"""Stands in for the package flashinfer: its kernels, as `build.sh` compiled them from its headers."""
