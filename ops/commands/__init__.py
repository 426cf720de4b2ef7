"""One file for each `warmlane …` command, and the options that they share."""
