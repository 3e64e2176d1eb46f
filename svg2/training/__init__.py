"""Everything behind the built-in model: scenes, prompt grammar, training and evaluation."""
