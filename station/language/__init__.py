"""The languages of the station: English in the code, every other one in a catalogue file of this folder."""
