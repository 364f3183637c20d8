"""Real programs as guests: their output has to be that of the native run, also when they are saved in the middle."""
