"""Atlas: a small world of flags, outlines, maps and facts to train and question a VILA on.

Built from three packages (``packages.py``); imports of vila_mc nothing but its face for commands,
files and errors. ``README.md`` says what is in it.
"""
