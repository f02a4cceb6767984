"""Search of settings by the validation split."""
