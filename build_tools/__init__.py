"""The native build: finds the tools, writes a ninja file, builds what the machine can build and says what it left out.

Used by setup.py only; nothing here is installed. docs/building.md describes it from the outside.
"""
