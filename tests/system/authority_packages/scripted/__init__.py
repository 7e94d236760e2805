"""An agent that does as its script says, for tests."""
