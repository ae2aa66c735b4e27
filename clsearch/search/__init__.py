"""Searching: which trials a task has, and the backend that runs them."""
