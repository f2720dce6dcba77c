"""What the kernel tells about one packet at one place, whoever listens (BPF, tracefs). Primitive values only."""

from __future__ import annotations

from typing import NamedTuple

TRANSMIT, DELIVER, DROP, CONSUME = "transmit", "deliver", "drop", "consume"


class PacketEvent(NamedTuple):
    """A packet at one place of the kernel.

    ``time`` is in nanoseconds of CLOCK_MONOTONIC. ``kind``: ``transmit`` (net_dev_queue: on its way out of a device), ``deliver``
    (netif_receive_skb: came in by a device), ``drop`` (kfree_skb), ``consume`` (consume_skb: freed after use). ``skb`` is the address of
    the packet's structure, the same as long as the packet lives. ``netns`` is the inode number of the network namespace (0: not known),
    ``netns`` and ``device`` being those of skb->dev, else of the socket. ``protocol`` is the ethertype. ``packet`` is the packet from its
    network header on (IP, ARP), as many bytes as were asked for; ``length`` its whole length. ``reason`` (``NETFILTER_DROP``; empty
    unless dropped) is the kernel's name without SKB_DROP_REASON_; ``function`` the symbol where it was freed. ``mark`` is skb->mark.
    """

    time: int
    kind: str
    skb: int
    netns: int
    ifindex: int
    device: str
    protocol: int
    length: int
    packet: bytes
    reason: str = ""
    function: str = ""
    mark: int = 0
