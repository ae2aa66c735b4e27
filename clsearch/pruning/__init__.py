"""Pruning: neuron activity, partition of the weights, threshold scan."""
