"""What the controller decides: pure functions from what is wanted and seen to actions."""
