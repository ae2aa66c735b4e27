"""Raw sources of images, one file each, read into uint8 tensors."""
