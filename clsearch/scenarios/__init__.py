"""Sequences of tasks, one file each."""
