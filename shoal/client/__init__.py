"""The public client: `connect` and what it gives back."""
