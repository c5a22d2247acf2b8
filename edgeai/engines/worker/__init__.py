"""The engine in a supervised child process: what kills native code kills that process, and the application goes on.

values.py says what may travel, frames.py how it is cut, outbox.py writes it, process.py is one child as its parent sees it,
child.py the child itself, request.py what is asked of it, supervisor.py what restarts it, engine.py the Engine in front of all that.
Nothing is imported here: the child needs half of it.
"""
