"""From the frames of a video to its stored embeddings, on one rank or many."""
