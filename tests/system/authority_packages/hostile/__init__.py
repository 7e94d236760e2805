"""A driver that runs the code it is handed, for tests."""
