"""What training in a layout takes, worked out without the GPUs."""
