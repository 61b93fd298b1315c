"""The settings of every stage, and the recipes that they are read from."""
