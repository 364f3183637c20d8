"""What people look at. Nothing here makes a system call or speaks to a guest."""
