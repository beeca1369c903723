"""For programs: mount or serve a FileSystem. What is public stands in passthrough/__init__.py and passthrough(3).

Rules: no handler of a signal, no limit, no log handler and no working directory of the program is changed, unless the
program asks for it; nothing is printed; what is begun here ends here, with its threads and descriptors.
"""
