"""What a training step costs, beside what users know: measured, not claimed."""
