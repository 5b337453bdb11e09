"""The public client: `shoal.connect` and `shoal.aio.connect`."""
