"""The command line: click commands that parse, call the engine and print. One module per group of commands.

    main        the table of commands, errors and exit codes        run         run, create
    options     options that several commands share                 lifecycle   start stop kill restart pause unpause wait rename rm
    output      tables, JSON, sizes and times for people            listing     ps inspect port show
    terminal    raw mode, detach keys, the loop of an attachment    logs exec stats update events gc system: what their names say

Only the module of the chosen command is imported.
"""
