"""What will happen to every tensor, decided from the header alone."""
