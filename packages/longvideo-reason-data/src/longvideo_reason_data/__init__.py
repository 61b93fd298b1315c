"""Long videos to question-answer pairs with checked chain-of-thought, without any tensor library."""
