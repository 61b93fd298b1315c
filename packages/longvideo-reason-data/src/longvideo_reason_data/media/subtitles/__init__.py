"""What is said in a video, where somebody wrote it down: files beside it and text tracks inside it."""
