"""The folder of runs and a question go in: which runs, what of one, how do two differ, how did a
case fare; a value that can be printed or stored comes out. `replay` runs one again."""
