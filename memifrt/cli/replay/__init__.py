"""What ``memifrt replay`` consists of: the capture, the choice of its packets, their times, and the sending."""
