"""Widgets: every decision of the method, to be changed and seen in a notebook.

explore (prepare and show), workbench (the map and its state), state (what decides an allocation, and how controls
change it), results (what its panels show, which are in panels/), view (what the browser draws: map, modules, panels),
stages (the rail above them), picture (the same for readers without it), session (on disk), race (Train both), past_race
(one that has ended, as it is listed), monitor (a training as it runs), training_follower, base (what all widgets
share), report and page (the workbench without a kernel), show (the panels of one result), scenes (a page that explains
LoRA).
"""
