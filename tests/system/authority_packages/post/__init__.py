"""Letters and an address book, for tests."""
