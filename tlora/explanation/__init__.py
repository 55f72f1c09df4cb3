"""What an adapter reads and what it did, in the words of the data."""
