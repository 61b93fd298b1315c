"""From what the planner finds to what a recipe says."""
