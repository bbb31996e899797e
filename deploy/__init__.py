"""What runs the project on machines of others."""
