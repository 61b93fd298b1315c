"""What was asked and what it cost: journals of answers and calls, prices."""
