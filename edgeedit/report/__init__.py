"""Report room: one HTML page and one JSON summary of an edit, for the person who must approve it."""
