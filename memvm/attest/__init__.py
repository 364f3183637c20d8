"""Evidence, verifier and token: what a platform signs of a guest, who appraises it, and what is said of it then."""
