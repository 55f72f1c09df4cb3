"""Tests of the laboratory and of the pages that it makes."""
