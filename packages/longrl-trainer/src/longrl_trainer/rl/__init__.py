"""The parts of one reinforcement step: groups of judged responses, the update, what is measured."""
