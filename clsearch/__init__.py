"""Hyperparameter and graceful-forgetting search for continual learning, distributed with Ray."""

__version__ = "0.1.0"
