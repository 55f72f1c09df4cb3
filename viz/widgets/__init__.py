"""Widgets: every decision of the method, to be changed and seen in a notebook.

explore (prepare and show), workbench (the map), state (what it shows, and how controls change it), results (what its
panels show, which are in panels/), race (Train both), attribution (answers taken apart), monitor (a training as it
runs), curves, base (what all widgets share), report and page (the same without a kernel).
"""
