"""What is measured once training is over."""
