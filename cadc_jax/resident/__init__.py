"""Training rows in the memory of the devices, and the batches that are made of them there."""
