"""The look before a start: what each node finds by itself, what all find together, and what arithmetic says."""
