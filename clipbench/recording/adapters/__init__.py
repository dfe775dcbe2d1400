"""`clipbench.watch` for the training loops of libraries, each in the library's own form.

Each file imports one library, and none of the others.
"""
