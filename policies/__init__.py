"""What is decided, and the words it is decided with.

Pure: no clock, socket, file, random, thread.
"""
