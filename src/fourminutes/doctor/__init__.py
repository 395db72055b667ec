"""What this machine or cluster offers, what a plan needs, what is missing; imports neither torch nor DALI."""
