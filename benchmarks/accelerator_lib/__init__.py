"""The parts of `accelerator.py`: what is measured on one GPU or TPU."""
