"""Golden texts of the built-in models, with the vectors that they must give."""
