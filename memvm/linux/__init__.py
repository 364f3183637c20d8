"""One thin file for each kernel interface that memvm uses."""
