"""Backbones, one file each, and the heads on top of them."""
