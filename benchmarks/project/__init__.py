"""The project itself: its documents followed by the letter, its pictures, its rooms and imports."""
