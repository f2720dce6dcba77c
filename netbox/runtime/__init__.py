"""What runs around and inside a sandbox: monitor, init, console, the handshake with the engine.

The parts that run in the monitor or in the sandbox load a few light modules of the standard library only: every import costs each start
milliseconds and each running sandbox memory. The engine's half is ``launcher``, ``client``, ``execute``, ``spawner``, ``status`` and
``log_reader``.
"""
