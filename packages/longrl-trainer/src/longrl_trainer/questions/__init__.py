"""Questions of a dataset with their encoded media, ready for a prompt."""
