"""What is alike, among very many: sets of words, and stretches of time."""
