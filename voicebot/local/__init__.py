"""Offline speech: whisper, piper and espeak-ng in a process of their own."""
