"""The scripted receptionist: a bot's words with no language model."""
