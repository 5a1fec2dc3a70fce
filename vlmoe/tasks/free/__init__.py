"""Scores of answers in words, each from what was said and the answers that are right."""
