"""The forms that a network comes in to be planned, and goes out in."""
