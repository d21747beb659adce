"""The encoder, its objectives, its starting weights."""
