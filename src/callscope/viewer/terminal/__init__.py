"""The viewer in a terminal (`callscope view --tui`): the page's answers as tables and trees, by Textual."""
