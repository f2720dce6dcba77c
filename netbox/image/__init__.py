"""Images: named root file systems that a sandbox starts from.

    store       names, layers, locks: ``ImageStore``
    model       ``Image``, what the store hands out, and its record on disk
    locks       who may delete what, and half-made directories that do not outlive their maker
    host        the pseudo image ``host``: this machine's own root
    busybox     the image ``busybox``, made on first use from Debian's busybox-static
    streams     an archive as one forward stream, whatever its compression
    tarformat   the headers of a tar archive, strictly read
    archive     extraction of a tar archive that cannot leave its directory
    directory   a directory of the host, copied
    tree        writing below one directory without following a link

An image is a list of layers, top first, each a directory that never changes once it has its name: overlayfs(5) ``lowerdir``. Importing
gives one layer; images of several layers fit the same record.
"""
