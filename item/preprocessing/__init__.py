"""From a listing to the encoder's input."""
