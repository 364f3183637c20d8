"""The process that runs one guest: its run-time directory, its control socket, its life and death."""
