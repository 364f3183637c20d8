"""The sealed guest: its platform in a process that the manager cannot look into, and what the two say to each other."""
