"""Tests of pieces: nothing here makes a mount, except the doctor's trial."""
