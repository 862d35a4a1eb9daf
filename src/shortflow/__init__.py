"""shortflow."""
