"""Selected models as things to take away: alone, in files, ready to serve."""
