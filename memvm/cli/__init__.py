"""One file a command: each reads its arguments, asks a manager or a reader, and lets report/ print."""
