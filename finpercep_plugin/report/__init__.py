"""Results as one self-contained HTML page, and the intervals that its tables quote."""
