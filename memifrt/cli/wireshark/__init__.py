"""What ``memifrt extcap`` consists of: the memifs that Wireshark lists, the capture, and the installation."""
