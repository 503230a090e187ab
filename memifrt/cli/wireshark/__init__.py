"""The parts of ``memifrt extcap``: the memifs that Wireshark lists, the capture, and the installation."""
