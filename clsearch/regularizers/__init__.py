"""Regularisers of weights and representations, one file each, composable with any method."""
