"""Training: data on the device, the pure step, the population, the epoch loop."""
