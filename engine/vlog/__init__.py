"""Large values: append, read by address, and give space back."""
