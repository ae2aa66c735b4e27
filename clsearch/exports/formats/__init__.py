"""The forms a model is exported in, one file each; the suffix of a path says which."""
