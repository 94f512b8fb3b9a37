"""The values that travel between the rooms, and the error tree. No I/O and no clock."""
