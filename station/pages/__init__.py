"""The pages of the station, with one style sheet: the console, the demo's result, and the explanation of an image."""
