"""Tests of the toolkit floor."""
