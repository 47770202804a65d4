"""voicebot: a phone bot that stops talking the moment the caller does."""

__version__ = "0.1.0"
